"""Inner product manipulation: the mean of the honest updates, turned round, so that the aggregate points backwards.

Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019, arXiv
1903.03936. Knows: all honest updates of the round. Sign: `-scale * mean`, the same for updates and for gradients; the
paper's epsilon is `scale`. Clients count equally.
"""

from typing import Any

from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import Colluder, checked_number


class IPM(Colluder):
    """Sends `-scale` times the mean: of (1, 2, 3), (4, 5, 6), (7, 8, 9) with `scale=2` it is (-8, -10, -12).

    Args:
        scale: epsilon, positive; small ones pass rules that look at distances.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(self, *, scale: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.scale = checked_number("scale", scale, above=0)

    def row(self, honest: Tensor, num_malicious: int, context: AdversaryContext) -> Tensor:
        """The turned mean."""
        return -self.scale * honest.mean(dim=0)
