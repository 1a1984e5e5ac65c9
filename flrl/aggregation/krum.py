"""Krum and multi-Krum: the rows whose nearest neighbours are nearest.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, arXiv 1703.02757. There a row's score is the sum of its squared distances from the n - f - 2 nearest
others; here from the n - f - 1 nearest others, which takes in one more honest row, as Allouah et al. analyse it
("Fixing by Mixing", AISTATS 2023, arXiv 2302.01772). Clients count equally.
"""

import torch
from torch import Tensor

from flrl.aggregation.bearing import BearingRule
from flrl.aggregation.columns import mean_of_kept
from flrl.aggregation.distances import squared_distances
from flrl.aggregation.rows import Rows, Ruled


class Krum(BearingRule):
    """The row with the lowest score: of (1, 2, 3), (4, 5, 6), (7, 8, 9) with f = 1 the first.

    Args:
        num_malicious: f, how many clients may be malicious.
    """

    bound = (2, 3, "Blanchard et al., 2017")
    any_order = True

    def chosen(self, count: int) -> int:
        """How many of so many rows are averaged."""
        return 1

    def rule(self, rows: Rows) -> Ruled:
        """The mean of the chosen rows."""
        scores = krum_scores(squared_distances(rows.values, rows.places), self.num_malicious)
        places = scores.argsort(stable=True)[: self.chosen(len(rows))].sort().values
        kept = torch.zeros(len(rows), dtype=torch.bool, device=scores.device)
        kept[places] = True
        return Ruled(mean_of_kept(rows.values, kept, rows.places), kept)


class MultiKrum(Krum):
    """The mean of the n - f rows with the lowest scores."""

    def chosen(self, count: int) -> int:
        """All but f."""
        return max(1, count - self.num_malicious)


def krum_scores(distances: Tensor, num_malicious: int) -> Tensor:
    """The score of each row from their squared distances `[n, n]`, `[n]`.

    Raises:
        ValueError: there are too few rows.
    """
    count = len(distances) - num_malicious  # itself at distance 0, and n - f - 1 others
    if count < 1:
        raise ValueError(f"Krum of {len(distances)} rows cannot bear {num_malicious} malicious ones")
    return distances.sort(dim=1).values[:, :count].sum(dim=1)
