"""Local differential privacy: each client clips what it sends and adds noise itself, and need not trust the server.

Duchi, Jordan, Wainwright, "Local Privacy and Statistical Minimax Rates", FOCS 2013, arXiv 1302.3203: what a client
sends is about equally likely whatever its samples are. Two clipped vectors are up to `2 * clip` apart, so that the
Gaussian mechanism has half the noise multiplier. Each round in which a client takes part is another release; that it
takes part is no secret, and sampling amplifies nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from flrl.privacy.mechanism import Charged
from flrl.transforms.bounding import Bounding
from flrl.transforms.dp import sampled
from flrl.transforms.noise import normal
from flrl.types import ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup


class LocalDP(Bounding):
    """Each client adds Gaussian noise of standard deviation `noise_multiplier * clip`; arguments as for `Bounding`."""

    fills_zeros = True
    name, cohorts, by_client, noise_from = "dp_local", "public", True, "client"

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """The releases of the client that took part most often."""
        return [sampled("gaussian", noise_multiplier / 2, 1.0, charged.most())]

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip all that the client sends, and add noise to it."""
        update, memory, numbers = super().client(update, memory, context)
        vectors = with_noise(update.vectors, self.multiplier() * self.clip, self, context)
        return replace(update, vectors=vectors), memory, numbers


def with_noise(vectors: Tensors, std: float, mechanism: Bounding, context: Context) -> dict[str, Tensor]:
    """The vectors with independent normal noise of a standard deviation."""
    if not std:
        return dict(vectors)
    generator = mechanism.generator(context)
    return {name: v + std * normal(v.numel(), generator).to(v.device) for name, v in vectors.items()}
