"""The mean of medians: rows are divided into groups, and the groups' coordinatewise medians are averaged.

Zhong, Huang, Yang, Wang, "Breaking the Moments Condition Barrier: No-Regret Algorithm for Bandits with Super
Heavy-Tailed Payoffs", NeurIPS 2021, arXiv 2110.13876, define it: the empirical mean of empirical medians. Groups have
at least 2f + 1 rows, so that every median lies among honest numbers, wherever the f malicious rows are; there the size
is a power of the number of samples. Clients count equally.

Not to be mistaken for the median of means (Chen, Su, Xu, 2017, arXiv 1705.05491), which is `geometric_median` with
`before=bucketing`, nor for the mean around the median, `meamed`.
"""

import torch
from torch import Tensor

from flrl.aggregation.bearing import BearingRule
from flrl.aggregation.median import median_of
from flrl.aggregation.rows import Rows


class MeanOfMedians(BearingRule):
    """The mean of the medians of as many groups as have 2f + 1 rows; the groups are drawn by seed.

    With f = 0 it is the mean, with fewer than 4f + 2 rows the median.

    Args:
        num_malicious: f, how many clients may be malicious.
    """

    def rule(self, rows: Rows) -> Tensor:
        """The mean of the groups' medians, `[d]`.

        Raises:
            ValueError: there are fewer than 2f + 1 rows.
        """
        groups = len(rows) // (2 * self.num_malicious + 1)
        if groups < 1:
            raise ValueError(f"MeanOfMedians of {len(rows)} rows cannot bear {self.num_malicious} malicious ones")
        order = torch.randperm(len(rows), generator=rows.generator).to(rows.values.device)
        medians = [median_of(rows.values[places]) for places in order.tensor_split(groups)]
        return torch.stack(medians).mean(dim=0)
