"""FLTrust: updates count by how far they point where the server's own update points, all at its length.

Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021, arXiv
2012.13995. In every round the server trains on its root samples (`root_samples`), from the model that it sends and with
the clients' settings. An update's trust is ReLU of its cosine with the server's, over all numbers of the update.
Samples do not count. If nobody is trusted the result is zero, so that the model stays; there it is not defined.
"""

from typing import TYPE_CHECKING

import torch

from flrl.aggregation.rows import RowRule, Rows, Ruled

if TYPE_CHECKING:
    from flrl.setup import Setup


class FLTrust(RowRule):
    """The mean, by trust, of updates scaled to the root update's norm.

    Of (3, 4) and (0, -9) with the root update (2, 0) it is (1.2, 1.6). On plain rows: `FLTrust()(rows, root=update)`.
    """

    needs_root = True

    def check(self, setup: "Setup") -> None:
        """Refuse a server without samples of its own."""
        super().check(setup)
        if not setup.num_root_samples:
            raise ValueError(
                "strategy.aggregator: FLTrust needs root samples, on which the server trains itself: root_samples=100"
            )

    def rule(self, rows: Rows) -> Ruled:
        """The mean; a row without trust is left out.

        Raises:
            ValueError: there is no root update, or it is zero.
        """
        if rows.root is None:
            raise ValueError("FLTrust needs the update of the server's root samples: FLTrust()(rows, root=update)")
        root, norms = rows.root.to(rows.values), rows.values.norm(dim=1)
        norm = root.norm()
        if norm == 0:
            raise ValueError("FLTrust: the update of the server's root samples is zero, so no cosine is defined")
        trust = torch.where(norms > 0, (rows.values @ root) / (norms * norm), 0.0).clamp(min=0.0)
        total = trust.sum()
        if total == 0:
            return Ruled(torch.zeros_like(root), trust > 0)
        shares = torch.where(trust > 0, trust / total * (norm / norms), 0.0)
        return Ruled(shares @ rows.values, trust > 0)
