"""What every recording of a step has in common: the module stays what it was, and what cannot be recorded is said."""

import contextlib
import pickle
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from flrl.snapshot import Snapshot


class NotCapturableError(Exception):
    """A step cannot be recorded and replayed; the message is the reason."""


@contextlib.contextmanager
def unchanged(module: pl.LightningModule, spared: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block a step of the module is recorded; afterwards the module is what it was before.

    Args:
        module: the module.
        spared: its tensors that are not looked at.

    Raises:
        NotCapturableError: the block raised, or has changed the module or random numbers of Python or NumPy.
    """
    before, generators = Snapshot(module, "module", spared=spared), python_generators()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except NotCapturableError:
        raise
    except Exception as error:
        raise NotCapturableError(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}") from error
    finally:
        changed = before.changed()
        before.restore()
    if changed:
        raise NotCapturableError(f"training_step changes {', '.join(changed[:3])}")
    if python_generators() != generators:
        raise NotCapturableError("training_step draws random numbers from Python or NumPy")


def python_generators() -> Any:
    """The states of Python's and NumPy's generators, to be compared."""
    return random.getstate(), pickle.dumps(np.random.get_state())
