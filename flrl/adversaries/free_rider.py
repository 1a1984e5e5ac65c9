"""Free riders: clients that pretend to train, to be given the model.

Lin, Du, Liu, "Free-riders in Federated Learning: Attacks and Defenses", 2019, arXiv 1911.12560. `zero`: nothing has
changed. `noise`: random weights. `delta`: what the global model has changed by since the client was last sent it, plus
noise ("advanced delta weights"); the first time there is only the noise. Knows: the global models that it is sent.
Sign: the delta is an update, later minus earlier model. The client does train, as engines and records do not know of
it, but what it has trained is thrown away.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.gaussian import noise
from flrl.adversaries.updates import UpdateAttack, checked_number, with_update
from flrl.types import ClientUpdate, Tensors

SENT = "sent"
"""The name in client memory of the model that the client was sent last."""


class FreeRider(UpdateAttack):
    """Sends what costs no training.

    Args:
        kind: "zero", "noise" or "delta".
        std: standard deviation of the noise of "noise" and "delta", at least 0.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(
        self, *, kind: Literal["zero", "noise", "delta"] = "delta", std: float = 0.001, **options: Any
    ) -> None:
        super().__init__(**options)
        if kind not in ("zero", "noise", "delta"):
            raise ValueError(f"adversary.kind={kind!r}: must be 'zero', 'noise' or 'delta'")
        self.kind, self.std = kind, checked_number("std", std, least=0)

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        """The pretence; for "delta" the client remembers what it was sent."""
        if self.kind != "delta":
            return super().update(update, {}, context)
        pretence = self.changed(update.vectors["update"], context) + since(memory, context)
        return with_update(update, pretence), {SENT: context.sent.clone()}

    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """What is sent the first time."""
        return torch.zeros_like(own) if self.kind == "zero" else noise(own, context, std=self.std)


def since(memory: Tensors, context: AdversaryContext) -> Tensor:
    """What the global model has changed by since the client was last sent it, float64 `[d]`; zeros the first time."""
    sent = context.sent.double()
    return sent - memory[SENT].to(sent) if SENT in memory else torch.zeros_like(sent)
