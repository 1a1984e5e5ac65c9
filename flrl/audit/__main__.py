"""Audit a finished run, or runs of several seeds: `python -m flrl.audit run=outputs/...`, or `flrl-audit`."""

import sys

from omegaconf import DictConfig

from flrl.cli.app import run_app
from flrl.cli.arguments import arranged
from flrl.cli.importing import uncollected
from flrl.config import AuditConfig
from flrl.portable import choose, of_run


def audit(cfg: DictConfig) -> None:
    """Audit as configured; prints the table and writes it into the folder `audit/` of the run."""
    choose(of_run(cfg.run))
    with uncollected():
        from flrl.audit.audit_run import audit_run

    audit_run(cfg)


def main() -> None:
    """The console script `flrl-audit`."""
    sys.argv[1:] = arranged(sys.argv[1:])
    run_app(audit, config_name="audit", schema=AuditConfig)


if __name__ == "__main__":
    main()
