"""Client canaries: clients that send a direction of their own, or zeros, by a coin, for an audit to look for.

Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot Empirical Privacy Estimation for Federated Learning", ICLR
2024, arXiv 2302.03098: directions drawn uniformly from the sphere are nearly orthogonal in high dimension, and a canary
of the norm of the clip bound is as visible as a client may be. Maddock, Sablayrolles, Stock, "CANIFE: Crafting Canaries
for Empirical Privacy Measurement in Federated Learning", ICLR 2023, arXiv 2210.02912, look for the inner product with
the released model too. Knows: nothing. A client whose coin says "out" sends zeros with its weight, which is the
neighbour of DP with a fixed denominator.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import UpdateAttack, checked_number
from flrl.seeding import generator_for

if TYPE_CHECKING:
    from flrl.setup import Setup


class ClientCanaries(UpdateAttack):
    """Sends the same random direction in every round, or zeros in every round, by a fair coin.

    Args:
        norm: the Euclidean norm of what is sent before transforms, positive; that of the clip bound, where there is
            one.
        options: as for `flrl.adversaries.Adversary`; all rounds must be audited.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, norm: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.norm = checked_number("norm", norm, above=0)

    def check(self, setup: "Setup") -> None:
        """Refuse strategies whose clients send more vectors than the update.

        Raises:
            ValueError: the reason.
        """
        super().check(setup)
        more = [name for name in setup.strategy.vector_sizes(setup.layout) if name != "update"]
        if more:
            raise ValueError(
                f"adversary=client_canaries: clients of {type(setup.strategy).__name__} also send {', '.join(more)}, "
                "in which no canary is"
            )

    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """The client's direction, or zeros; float64 `[d]`, zero for buffers."""
        sent = torch.zeros_like(own)
        if is_in(context.seed, context.client_id):
            drawn = direction(context.seed, context.client_id, context.layout.num_trainable)
            sent[: context.layout.num_trainable] = self.norm * torch.from_numpy(drawn).to(own)
        return sent


def is_in(seed: int, client_id: int) -> bool:
    """A client's coin: whether it sends its direction; a function of the run's seed and the client."""
    return bool(generator_for(seed, 0, client_id, "canaries/coin").random() < 0.5)


def direction(seed: int, client_id: int, size: int) -> np.ndarray:
    """A client's direction: float64 `[size]` of norm 1, uniform on the sphere."""
    drawn = generator_for(seed, 0, client_id, "canaries/direction").standard_normal(size)
    found: np.ndarray = drawn / math.sqrt((drawn * drawn).sum())  # BLAS has other bits on other numbers of cores
    return found
