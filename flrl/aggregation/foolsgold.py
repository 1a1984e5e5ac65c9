"""FoolsGold: clients whose updates have always pointed the same way, as those of one adversary's do, weigh less.

Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020, arXiv 1808.04866,
algorithm 1, over all numbers of the update. The server remembers the sum of each client's updates, in float32. Rows are
averaged by FoolsGold's weights, normalised to a sum of 1; samples do not count.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flrl.aggregation.rows import RowRule, Rows, Ruled

if TYPE_CHECKING:
    from flrl.setup import Setup


class FoolsGold(RowRule):
    """The mean by weights that fall with the largest similarity to another client's history; zeros if all fall to 0."""

    def check(self, setup: "Setup") -> None:
        """Refuse buckets, whose rows are no client's, so that nobody has a history."""
        super().check(setup)
        cohort = setup.most_updates
        if self.before is not None and self.before.count(cohort) != cohort:
            raise ValueError(
                f"strategy.aggregator.before: FoolsGold needs each client's own row, not {type(self.before).__name__}"
            )

    def rule(self, rows: Rows) -> Ruled:
        """The weighted mean; a row of weight 0 is left out."""
        names = [str(client_id) for client_id in rows.clients]
        history = torch.stack(
            [
                row + rows.state[name].to(row) if name in rows.state else row
                for name, row in zip(names, rows.values, strict=True)
            ]
        )
        weights = foolsgold_weights(history)
        total = weights.sum()
        vector = (weights / total if total > 0 else weights) @ rows.values
        kept = {name: tensor for name, tensor in rows.state.items() if name not in names}
        kept |= {name: row.float() for name, row in zip(names, history, strict=True)}
        return Ruled(vector, weights > 0, kept)


def foolsgold_weights(history: Tensor) -> Tensor:
    """The weights of clients, in [0, 1], from the sums of their updates `[n, d]`."""
    if len(history) == 1:
        return history.new_ones(1)
    directions = torch.nn.functional.normalize(history, dim=1)
    similar = (directions @ directions.t()).fill_diagonal_(-torch.inf)
    most = similar.amax(dim=1)
    # Pardoning: honest clients that look like a sybil are forgiven in proportion to how much more the sybil does.
    similar = similar * (most[:, None] / most[None, :]).where(most[None, :] > most[:, None], 1.0)
    weights = (1 - similar.fill_diagonal_(-torch.inf).amax(dim=1)).clamp(0.0, 1.0)
    largest = weights.max()
    if largest == 0:
        return weights
    weights = (weights / largest).clamp(max=0.99)
    return torch.where(weights > 0, torch.logit(weights) + 0.5, 0.0).clamp(0.0, 1.0)
