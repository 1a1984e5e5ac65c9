"""Bulyan: rows chosen by Krum one after the other, then of each number the mean of those nearest to the median.

El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018, arXiv
1802.07927. Clients count equally.
"""

import torch

from flrl.aggregation.around import nearest_mean
from flrl.aggregation.bearing import BearingRule
from flrl.aggregation.distances import squared_distances
from flrl.aggregation.krum import krum_scores
from flrl.aggregation.median import median_of
from flrl.aggregation.rows import Rows, Ruled


class Bulyan(BearingRule):
    """Chooses n - 2f rows, and averages n - 4f numbers of each column.

    Args:
        num_malicious: f, how many clients may be malicious.
    """

    bound = (4, 3, "El Mhamdi et al., 2018")

    def rule(self, rows: Rows) -> Ruled:
        """Choose, then average.

        Raises:
            ValueError: there are fewer than 4f + 1 rows.
        """
        count, distances = len(rows) - 2 * self.num_malicious, squared_distances(rows.values)
        if count - 2 * self.num_malicious < 1:
            raise ValueError(f"Bulyan of {len(rows)} rows cannot bear {self.num_malicious} malicious ones")
        left = list(range(len(rows)))
        chosen = []
        for _ in range(count):
            among = distances[left][:, left]
            scores = krum_scores(among, min(self.num_malicious, len(left) - 1))
            pairs = zip(scores.tolist(), among.sum(dim=1).tolist(), strict=True)  # the last scores are often equal
            chosen.append(left.pop(min(enumerate(pairs), key=lambda own: own[1])[0]))
        kept = torch.zeros(len(rows), dtype=torch.bool, device=distances.device)
        kept[chosen] = True
        values = rows.values[kept]
        return Ruled(nearest_mean(values, median_of(values), count - 2 * self.num_malicious), kept)
