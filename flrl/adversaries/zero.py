"""Zero update: a malicious client sends zeros, so that it only holds the aggregate back. Knows: nothing. Sign: none."""

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import UpdateAttack


class Zero(UpdateAttack):
    """Sends zeros."""

    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """Zeros, `[d]`."""
        return torch.zeros_like(own)
