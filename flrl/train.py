"""Train a federation: `python -m flrl.train +experiment=mnist_fedavg`, or `flrl-train ...`.

Imports nothing heavy at its top, so that `--help` and a mistyped key are answered at once.
"""

import sys

from omegaconf import DictConfig

from flrl.backends.mpi.launch import run_under_mpi
from flrl.cli.app import run_app
from flrl.cli.arguments import arranged, quietened
from flrl.cli.importing import uncollected
from flrl.config import TrainConfig


def train(cfg: DictConfig) -> float | None:
    """Train as configured; returns the metric that `optimized_metric` names, for sweepers."""
    from flrl.backends.mpi.launch import prepare

    prepare(cfg.backend.get("_target_", ""), portable=cfg.backend.get("portable") is True)
    with uncollected():
        from flrl.run import run

    return run(cfg)


def main() -> None:
    """The console script `flrl-train`."""
    sys.argv[1:] = arranged(quietened(sys.argv[1:]))
    run_under_mpi(lambda: run_app(train, config_name="train", schema=TrainConfig))


if __name__ == "__main__":
    main()
