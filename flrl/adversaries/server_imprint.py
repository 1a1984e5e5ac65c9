"""A malicious server that sends a model with an imprint layer, from whose gradients `attack=imprint` reads samples.

Fowl, Geiping, Czaja, Goldblum, Goldstein, "Robbing the Fed: Directly Obtaining Private Data in Federated Learning with
Modified Models", ICLR 2022, arXiv 2110.13057. Knows: the updates, or only their sum; samples of the same kind that are
no client's (the central test set), for the thresholds. The first layer of the user's own net becomes the imprint, where
that is Linear, ReLU, Linear; `model/net=with_imprint_layer` puts such layers before any net.
"""

from dataclasses import replace
from math import log2
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.server import MaliciousServer, known_inputs
from flrl.adversaries.tampering import imprint_objection, imprinted, thresholds_of
from flrl.seeding import SERVER, seed_for
from flrl.types import Broadcast

if TYPE_CHECKING:
    from flrl.setup import Setup


class ServerImprint(MaliciousServer):
    """Divides samples by a measurement into bins of equal numbers, one a neuron of the first layer.

    Args:
        measurement: "random": a normal direction, drawn by the run's seed; "brightness": the mean of all inputs.
        options: as for `flrl.adversaries.server.MaliciousServer`.

    Raises:
        ValueError: `measurement` is none of them.
    """

    def __init__(self, *, measurement: Literal["random", "brightness"] = "random", **options: Any) -> None:
        super().__init__(**options)
        if measurement not in ("random", "brightness"):
            raise ValueError(f"adversary.measurement={measurement!r}: must be 'random' or 'brightness'")
        self.measurement = measurement

    def check(self, setup: "Setup") -> None:
        """Refuse modules that have no room for an imprint.

        Raises:
            ValueError: the first layers, or the parameters that are sent, are others.
        """
        super().check(setup)
        reason = imprint_objection(setup.module, setup.layout)
        if reason is not None:
            raise ValueError(f"adversary=server_imprint: {reason}; model/net=with_imprint_layer puts them before a net")

    def broadcast(self, broadcast: Broadcast, context: AdversaryContext) -> Broadcast:
        """The broadcast with an imprinted model.

        The imprint and the weights after it are scaled alike, by about the inverse square root of the bins: of all ways
        to have the same outputs, local steps then change both least in proportion, and not below float32's rounding.
        """
        weight, _, following = context.layout.entries[:3]
        bins, size = weight.shape
        scale = 2.0 ** -round(log2(bins) / 2)  # a power of two: no sample changes its bin by rounding
        known = known_inputs(context, size)
        direction = self._direction(size, context.seed)
        direction = scale * (direction / (known @ direction).std())
        fan = torch.randn(following.shape[0], generator=context.generator, dtype=torch.float64).abs() / (scale * bins)
        thresholds = thresholds_of(known @ direction, bins)
        return replace(broadcast, vector=imprinted(broadcast.vector, context.layout, direction, thresholds, fan))

    def _direction(self, size: int, seed: int) -> Tensor:
        if self.measurement == "brightness":
            return torch.ones(size, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed_for(seed, 0, SERVER, "adversary/direction"))
        return torch.randn(size, generator=generator, dtype=torch.float64)
