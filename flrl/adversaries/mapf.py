"""MPAF ("mapf"): fake clients drag the global model towards one of their own, and its baselines.

Cao, Gong, "MPAF: Model Poisoning Attacks to Federated Learning based on Fake Clients", CVPR Workshops 2022, arXiv
2203.08669. `base`: `scale * (base - sent)`, the base model drawn once by seed, the same for all. `history`: -`scale`
times what the global model has changed by since the client was last sent it; zeros the first time. `random`: `scale`
times normal noise. Knows: the global models that it is sent. Sign: rows are updates, so that a rule that takes them all
moves the model to the base. The paper's scale is 1e6. What the client has trained is thrown away.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.free_rider import SENT, since
from flrl.adversaries.gaussian import noise
from flrl.adversaries.updates import UpdateAttack, checked_number, with_update
from flrl.seeding import SERVER, seed_for
from flrl.types import ClientUpdate, Tensors


class MAPF(UpdateAttack):
    """Sends what needs neither samples nor training; buffers' changes are zeros.

    Args:
        kind: "base", "history" or "random".
        scale: lambda, positive.
        std: standard deviation of the base model's numbers, or of the noise; positive.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(
        self,
        *,
        kind: Literal["base", "history", "random"] = "base",
        scale: float = 10.0,
        std: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if kind not in ("base", "history", "random"):
            raise ValueError(f"adversary.kind={kind!r}: must be 'base', 'history' or 'random'")
        self.kind = kind
        self.scale, self.std = checked_number("scale", scale, above=0), checked_number("std", std, above=0)

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        """The fake; for "history" the client remembers what it was sent."""
        if self.kind != "history":
            return super().update(update, {}, context)
        return with_update(update, -self.scale * since(memory, context)), {SENT: context.sent.clone()}

    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """What is sent the first time."""
        if self.kind == "history":
            return torch.zeros_like(own)
        if self.kind == "random":
            return self.scale * noise(own, context, std=self.std)
        count = context.layout.num_trainable
        generator = torch.Generator().manual_seed(seed_for(context.seed, 0, SERVER, "adversary/base"))
        base = self.std * torch.randn(count, generator=generator, dtype=torch.float64)
        found = torch.zeros_like(own)
        found[:count] = self.scale * (base.to(own.device) - context.sent[:count].to(own))
        return found
