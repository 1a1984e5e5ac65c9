"""Sign flip: a malicious client sends its own update with the opposite sign, away from the goal.

Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods", AAAI 2019, arXiv 1811.03761; with
`scale=1` the bit flip of Karimireddy et al. (ICLR 2022). Knows: its own update. Sign: rows are updates, local minus
global model; minus an update is also what the opposite gradient gives, so ByzFL's values on gradients are the same.
"""

from typing import Any

from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import UpdateAttack, checked_number


class SignFlip(UpdateAttack):
    """Sends `-scale` times the own update: of rows (1, 2, 3), (4, 5, 6), (7, 8, 9) the mean gives (-4, -5, -6).

    Args:
        scale: positive.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(self, *, scale: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.scale = checked_number("scale", scale, above=0)

    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """The flipped update."""
        return own * -self.scale
