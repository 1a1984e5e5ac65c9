"""Evaluate a finished run: `python -m flrl.evaluate run=outputs/... clients=true`, or `flrl-evaluate ...`."""

from omegaconf import DictConfig

from flrl.app import run_app
from flrl.config import EvaluateConfig


def evaluate(cfg: DictConfig) -> None:
    """Evaluate as configured; prints the metrics and writes `evaluation.json` into the run's folder."""
    from flrl.evaluate_run import evaluate_run

    evaluate_run(cfg)


def main() -> None:
    """The console script `flrl-evaluate`."""
    run_app(evaluate, config_name="evaluate", schema=EvaluateConfig)


if __name__ == "__main__":
    main()
