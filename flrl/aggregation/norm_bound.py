"""Norm bounding with weak noise: rows are scaled down to a bound, averaged by samples, and noise is added.

Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, arXiv 1911.07963.
"""

from typing import Any

import torch
from torch import Tensor

from flrl.aggregation.rows import RowRule, Rows


class NormBound(RowRule):
    """The weighted mean of rows no longer than `max_norm`, plus Gaussian noise.

    Args:
        max_norm: the bound, positive.
        std: the noise's standard deviation, at least 0.
    """

    def __init__(self, *, max_norm: float, std: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        if not max_norm > 0:
            raise ValueError(f"strategy.aggregator.max_norm={max_norm}: must be positive")
        if not 0 <= std < float("inf"):
            raise ValueError(f"strategy.aggregator.std={std}: must be at least 0 and finite")
        self.max_norm, self.std = max_norm, std

    def rule(self, rows: Rows) -> Tensor:
        """The noisy mean, `[d]`."""
        factors = (self.max_norm / rows.values.norm(dim=1)).clamp_(max=1.0)
        mean = (factors * rows.weights / rows.weights.sum()) @ rows.values
        noise = torch.randn(mean.shape, generator=rows.generator, dtype=mean.dtype)
        noisy: Tensor = mean + self.std * noise.to(mean.device)
        return noisy
