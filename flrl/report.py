"""Write the report of a run or a sweep: `python -m flrl.report run=outputs/...`, or `flrl-report ...`."""

import sys

from omegaconf import DictConfig

from flrl.cli.app import run_app
from flrl.cli.arguments import arranged
from flrl.cli.importing import uncollected
from flrl.config import ReportConfig


def report(cfg: DictConfig) -> None:
    """Report as configured; writes a page into the folder and prints its path."""
    with uncollected():
        from flrl.report_run import report_run

    report_run(cfg)


def main() -> None:
    """The console script `flrl-report`."""
    sys.argv[1:] = arranged(sys.argv[1:])
    run_app(report, config_name="report", schema=ReportConfig)


if __name__ == "__main__":
    main()
