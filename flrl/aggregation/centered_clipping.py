"""Centred clipping: the mean of rows that are clipped around the last aggregate.

Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021, arXiv 2012.10333. Clients
count equally. The server remembers the last aggregate; in the first round it is zero.
"""

from typing import Any

import torch

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
            offsets = rows.values - centre
            factors = (self.radius / offsets.norm(dim=1)).clamp_(max=1.0)  # infinite where the offset is zero
            centre = centre + (factors[:, None] * offsets).mean(dim=0)
        return Ruled(centre, state={"centre": centre})
