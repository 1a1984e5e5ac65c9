"""Divide and conquer: rows that lie far along the direction in which rows differ most are left out.

Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", NDSS 2021, algorithm 2. Clients count equally.
"""

import torch

from flrl.aggregation.bearing import BearingRule
from flrl.aggregation.columns import mean_of_kept
from flrl.aggregation.rows import Before, Rows, Ruled


class DnC(BearingRule):
    """The mean of the rows that no iteration has left out.

    Args:
        num_malicious: f, how many clients may be malicious.
        iterations: how often outliers are looked for, each time among other columns.
        columns: how many columns are drawn each time.
        filter_factor: c; `c * f` rows are left out each time, rounded down.
    """

    bound = (2, 1, "Shejwalkar and Houmansadr, 2021")

    def __init__(
        self,
        *,
        num_malicious: int,
        iterations: int = 1,
        columns: int = 10_000,
        filter_factor: float = 1.0,
        before: Before | None = None,
    ) -> None:
        super().__init__(num_malicious=num_malicious, before=before)
        for name, value in (("iterations", iterations), ("columns", columns)):
            if value < 1:
                raise ValueError(f"strategy.aggregator.{name}={value}: must be at least 1")
        if not filter_factor > 0:
            raise ValueError(f"strategy.aggregator.filter_factor={filter_factor}: must be positive")
        self.iterations, self.columns = iterations, columns
        self.filter_factor = filter_factor

    def rule(self, rows: Rows) -> Ruled:
        """Leave out, then average.

        Raises:
            ValueError: no row is left.
        """
        count, size = rows.values.shape
        kept = torch.ones(count, dtype=torch.bool, device=rows.values.device)
        for _ in range(self.iterations):
            places = torch.randperm(size, generator=rows.generator)[: self.columns].sort().values
            part = rows.values[:, places.to(rows.values.device)]
            centred = part - part.mean(dim=0)
            centred = centred / centred.abs().max().clamp(min=1e-300)  # so that no score overflows
            # The top right singular vector of the rows is theirs along the top eigenvector of their products.
            along = torch.linalg.eigh(centred @ centred.t()).eigenvectors[:, -1]
            scores = (centred @ (centred.t() @ along)).square()
            left_out = int(self.filter_factor * self.num_malicious)
            kept[scores.argsort(stable=True)[count - left_out :]] = False
        if not kept.any():
            raise ValueError(f"DnC has left out all of {count} rows: num_malicious={self.num_malicious} is too large")
        return Ruled(mean_of_kept(rows.values, kept), kept)
