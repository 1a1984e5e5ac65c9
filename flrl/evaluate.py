"""Evaluate a finished run: `python -m flrl.evaluate run=outputs/... clients=true`, or `flrl-evaluate ...`."""

import sys

from omegaconf import DictConfig

from flrl.backends.mpi.launch import run_under_mpi
from flrl.cli.app import run_app
from flrl.cli.arguments import arranged
from flrl.cli.importing import uncollected
from flrl.config import EvaluateConfig
from flrl.portable import choose, of_run


def evaluate(cfg: DictConfig) -> None:
    """Evaluate as configured; prints the metrics and writes `evaluation.json` into the run's folder."""
    choose(of_run(cfg.run))
    with uncollected():
        from flrl.evaluate_run import evaluate_run

    evaluate_run(cfg)


def main() -> None:
    """The console script `flrl-evaluate`."""
    sys.argv[1:] = arranged(sys.argv[1:])
    run_under_mpi(lambda: run_app(evaluate, config_name="evaluate", schema=EvaluateConfig))


if __name__ == "__main__":
    main()
