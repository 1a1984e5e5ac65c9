"""Mimic: all malicious clients copy one honest client, so that its data count too much; nothing of it is an outlier.

Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, arXiv
2006.09365, appendix B: in a warm-up the direction z in which honest updates differ most is learnt by Oja's rule,
`z <- t / (t + 1) z + 1 / (t + 1) sum_i (x_i - mu) <x_i - mu, z>` (normalised), mu the running mean; the client that is
farthest from the mean along z, either way, is copied; after the warm-up always the same one, or where it takes no part
the one that is farthest then. Knows: all honest updates of every round. Sign: an honest update is sent as it is.
"""

from typing import Any

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import Colluder
from flrl.types import Tensors


class Mimic(Colluder):
    """Copies an honest row.

    Args:
        warmup: rounds in which the direction is learnt, at least 1.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(self, *, warmup: int = 10, **options: Any) -> None:
        super().__init__(**options)
        if warmup < 1:
            raise ValueError(f"adversary.warmup={warmup}: must be at least 1")
        self.warmup = warmup

    def row(self, honest: Tensor, num_malicious: int, context: AdversaryContext) -> Tensor:
        """The row to be copied in the first round."""
        return self.collude(honest, honest[:1], {}, context)[0]

    def collude(self, honest: Tensor, own: Tensor, state: Tensors, context: AdversaryContext) -> tuple[Tensor, Tensors]:
        """The copied row; the direction, the running mean, the rounds so far and the copied client are remembered."""
        rounds = int(state.get("rounds", torch.tensor(0)))
        if rounds >= self.warmup:
            target = int(state["target"])
            known = target in context.honest
            place = list(context.honest).index(target) if known else _farthest(honest - honest.mean(dim=0), state["z"])
            return honest[place], state
        z = state["z"] if rounds else torch.randn(honest.shape[1], generator=context.generator, dtype=torch.float64)
        before = state["mean"] if rounds else torch.zeros_like(honest[0])
        mean = before + (honest.mean(dim=0) - before) / (rounds + 1)
        centred = honest - mean
        z = _normalised(z.to(honest))
        learnt = _normalised((centred @ z) @ centred)
        z = _normalised(rounds / (rounds + 1) * z + learnt / (rounds + 1))
        place = _farthest(centred, z)
        ids = context.honest or range(len(honest))
        kept = {"z": z, "mean": mean, "rounds": torch.tensor(rounds + 1), "target": torch.tensor(ids[place])}
        return honest[place], kept


def _farthest(centred: Tensor, z: Tensor) -> int:
    return int((centred @ z.to(centred)).abs().argmax())


def _normalised(vector: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vector, dim=0)
