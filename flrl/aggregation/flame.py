"""FLAME: the largest cluster of directions, clipped to the median norm, with noise in proportion to it.

Nguyen, Rieger, Chen, Yalame, Möllering, Fereidooni, Marchal, Miettinen, Mirhoseini, Zeitouni, Koushanfar, Sadeghi,
Schneider, "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022, arXiv 2101.02281, algorithm 1. There
the cosines are of local models; here of updates, which are what rows are, and whose directions do not shrink beside the
global model. Clients count equally.
"""

from typing import Any

import torch
from torch import Tensor

from flrl.aggregation.distances import cosine_distances
from flrl.aggregation.rows import RowRule, Rows, Ruled


class FLAME(RowRule):
    """HDBSCAN's cluster of more than half of the rows, by cosine distance; the others are left out.

    Rows are clipped to the median S of all rows' norms and averaged, and Gaussian noise of standard deviation
    `noise * S` is added. Where no cluster is found nobody is left out.

    Args:
        noise: lambda, at least 0; 0.001 is the paper's for images, 0.01 for network traffic.
    """

    def __init__(self, *, noise: float = 0.001, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= noise < float("inf"):
            raise ValueError(f"strategy.aggregator.noise={noise}: must be at least 0 and finite")
        self.noise = noise

    def rule(self, rows: Rows) -> Ruled:
        """Cluster, clip, average, add noise."""
        kept = majority(cosine_distances(rows.values))
        norms = rows.values.norm(dim=1)
        bound = norms.quantile(0.5)
        shares = torch.where(norms > bound, bound / norms, 1.0) * kept / kept.sum()
        mean = shares @ rows.values
        drawn = torch.randn(mean.shape, generator=rows.generator, dtype=mean.dtype)
        return Ruled(mean + self.noise * bound * drawn.to(mean.device), kept)


def majority(distances: Tensor) -> Tensor:
    """The members of the cluster that has more than half of the rows, bool `[n]`, from distances `[n, n]`."""
    count = len(distances)
    everybody = torch.ones(count, dtype=torch.bool, device=distances.device)
    if count < 3:
        return everybody
    from sklearn.cluster import HDBSCAN

    clusters = HDBSCAN(
        min_cluster_size=count // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    ).fit(distances.cpu().numpy())
    found = torch.from_numpy(clusters.labels_ >= 0).to(distances.device)
    return found if found.any() else everybody
