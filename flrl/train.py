"""Train a federation: `python -m flrl.train +experiment=mnist_fedavg`, or `flrl-train ...`.

Imports nothing heavy at its top, so that `--help` and a mistyped key are answered at once.
"""

import sys
from types import ModuleType
from typing import Any

from omegaconf import DictConfig

from flrl.backends.mpi.launch import run_under_mpi
from flrl.backends.mpi.world import world
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


class _Trains(ModuleType):
    """This module, which can be called: `flrl.train("seed=1")`."""

    def __call__(self, *overrides: str) -> Any:
        """See `flrl.results.training.trained`."""
        if world() is not None:
            raise ValueError("flrl.train: trains in one process; under mpiexec start flrl-train")
        from flrl.results.training import trained

        return trained(train, *overrides)


sys.modules[__name__].__class__ = _Trains

if __name__ == "__main__":
    main()
