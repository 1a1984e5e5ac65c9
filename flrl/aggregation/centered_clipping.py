"""Centred clipping: the mean of rows that are clipped around the last aggregate.

Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, arXiv 2012.10333. Clients
count equally. The server remembers the last aggregate; in the first round it is zero.
"""

from typing import Any

import torch

from flrl.aggregation.columns import column_spans, norms_from
from flrl.aggregation.rows import RowRule, Rows, Ruled


class CenteredClipping(RowRule):
    """`v + mean(clip(x_i - v))`, repeated.

    Args:
        radius: what a row may be away from the centre, Euclidean, positive.
        iterations: how often the result becomes the next centre in a round.
    """

    def __init__(self, *, radius: float = 100.0, iterations: int = 1, **options: Any) -> None:
        super().__init__(**options)
        if not radius > 0:
            raise ValueError(f"strategy.aggregator.radius={radius}: must be positive")
        if iterations < 1:
            raise ValueError(f"strategy.aggregator.iterations={iterations}: must be at least 1")
        self.radius, self.iterations = radius, iterations

    def rule(self, rows: Rows) -> Ruled:
        """The centre after the last repetition; it is the next round's first."""
        centre = rows.state.get("centre", torch.zeros(rows.values.shape[1])).to(rows.values)
        for _ in range(self.iterations):
            norms = norms_from(rows.values, centre)
            factors = (self.radius / norms).clamp_(max=1.0)[:, None]  # infinite where the norm is zero
            spans = column_spans(*rows.values.shape)
            steps = [((rows.values[:, span] - centre[span]) * factors).mean(dim=0) for span in spans]
            centre = centre + torch.cat(steps)
        return Ruled(centre, state={"centre": centre})
