"""The geometric median: the point whose weighted sum of distances from all rows is least (RFA).

Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 2022,
arXiv 1912.13445: the smoothed Weiszfeld algorithm. Clients are weighted by their samples, as there. It begins at the
coordinatewise median instead of the mean, so that rows of any length cannot keep it from getting near.
"""

from typing import Any

import torch
from torch import Tensor

from flrl.aggregation.columns import column_spans, norms_from
from flrl.aggregation.median import median_of
from flrl.aggregation.rows import RowRule, Rows


class GeometricMedian(RowRule):
    """Of 0, 0, 9 the geometric median is 0.

    Args:
        iterations: steps of the algorithm.
        smoothing: distances below it count as this one, positive.
    """

    def __init__(self, *, iterations: int = 8, smoothing: float = 1e-6, **options: Any) -> None:
        super().__init__(**options)
        if iterations < 1:
            raise ValueError(f"strategy.aggregator.iterations={iterations}: must be at least 1")
        if not smoothing > 0:
            raise ValueError(f"strategy.aggregator.smoothing={smoothing}: must be positive")
        self.iterations, self.smoothing = iterations, smoothing

    def rule(self, rows: Rows) -> Tensor:
        """The last of the steps, `[d]`."""
        found = torch.cat([median_of(rows.values[:, span]) for span in column_spans(*rows.values.shape)])
        for _ in range(self.iterations):
            distances = norms_from(rows.values, found).clamp_(min=self.smoothing)
            shares = rows.weights / distances
            found = (shares / shares.sum()) @ rows.values
        return found
