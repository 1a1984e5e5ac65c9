"""The base class of malicious servers: all clients are honest, and are sent a model that the server has tampered with.

The server's own model stays as it is, and is stepped by what comes back, as if nothing had happened: rounds in which
the server misbehaves (`start` to `stop`) are lost for training.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries.base import Adversary, AdversaryContext

if TYPE_CHECKING:
    from flrl.setup import Setup

_KNOWN = 1000
"""Samples that the server looks at, at most."""


class MaliciousServer(Adversary):
    """Base class of servers that override `broadcast`; options as for `flrl.adversaries.Adversary`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.clients not in (0, 0.0, ()):
            raise ValueError(f"adversary.clients={self.clients}: must be 0, it is the server that is malicious")

    def check(self, setup: "Setup") -> None:
        """Refuse strategies with personal parameters, which the server cannot tamper with as a whole.

        Raises:
            ValueError: there are some.
        """
        super().check(setup)
        if setup.layout.personal:
            raise ValueError(f"adversary: {type(self).__name__} needs the whole model, strategy.personal must be []")


def known_inputs(context: AdversaryContext, size: int) -> Tensor:
    """Inputs like the clients', from the central test set, float64 `[n, size]`.

    Raises:
        ValueError: there are none, or they are no tensors of this size.
    """
    public = context.public
    count = 0 if public is None else min(_KNOWN, len(public))
    if public is None or not count:
        raise ValueError("adversary: a malicious server needs test samples, and the test set is empty")
    batch = next(iter(public.batches(np.arange(count), count)))
    inputs = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(inputs, Tensor) or inputs[0].numel() != size:
        raise ValueError(f"adversary: the first layer takes {size} numbers, and samples are others")
    return inputs.detach().cpu().flatten(1).to(torch.float64)
