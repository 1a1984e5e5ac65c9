"""Rows sorted column by column, for rules that go number by number."""

import numpy as np
import torch
from torch import Tensor


def sorted_columns(rows: Tensor) -> Tensor:
    """Each column of `[n, d]` in ascending order."""
    if rows.device.type != "cpu":
        return rows.sort(dim=0).values
    return torch.from_numpy(np.sort(rows.t().contiguous().numpy(), axis=1)).t()  # seven times faster than torch's
