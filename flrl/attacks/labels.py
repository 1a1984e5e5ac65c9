"""Labels from the gradient of the last layer."""

import torch
from torch import Tensor


def sign_rule(bias_gradient: Tensor) -> Tensor:
    """The class of one sample: the only one whose score's bias has a negative gradient (iDLG, arXiv 2001.02610).

    Args:
        bias_gradient: of the cross-entropy, with respect to the bias of the class scores, `[num_classes]`.

    Returns:
        int64 `[1]`.
    """
    return torch.argmin(bias_gradient).view(1)
