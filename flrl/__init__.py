"""flrl: federated learning research with PyTorch Lightning and Hydra, reproducible to the bit.

From Python: `flrl.train("+experiment=mnist_fedavg", "seed=1")` trains as the command line does and returns a `Run`,
`flrl.load("outputs/...")` reads one.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flrl import results as results
    from flrl.results.run import Run as Run
    from flrl.results.run import load as load

    def train(*overrides: str) -> Run:
        """Train as `flrl-train` with these overrides does; see `flrl.results.training.trained`."""


def __getattr__(name: str) -> Any:
    """What needs pandas is imported when it is first used."""
    if name in ("train", "results"):
        return importlib.import_module(f"flrl.{name}")  # flrl.train is a module that can be called
    if name in ("Run", "load"):
        return getattr(importlib.import_module("flrl.results"), name)
    raise AttributeError(f"module 'flrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "Run", "load", "results", "train"]
