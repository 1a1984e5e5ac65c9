"""Asynchronous learning, FedAsync: the server mixes each client's model into its own as it arrives.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv 1903.03934.
"""

from collections.abc import Sequence

from flrl.scheduling.base import Plan
from flrl.scheduling.buffered import Buffered
from flrl.scheduling.staleness import Polynomial, Staleness
from flrl.types import ClientReport, ServerState, Tensors


class Asynchronous(Buffered):
    """`x <- (1 - a) x + a x_k` for each client's model `x_k` as it arrives, where `a = mixing * staleness(tau)`.

    The strategy is given the update `a (x_k - x)`, which plain averaging on the server adds. Each step of the server is
    a round; the sampler's cohort is under way.

    Args:
        mixing: alpha in the paper, in (0, 1].
        staleness: s in the paper; the polynomial with exponent 0.5 by default.

    Raises:
        ValueError: `mixing` is out of range.
    """

    def __init__(self, *, mixing: float = 0.6, staleness: Staleness | None = None) -> None:
        super().__init__(buffer=1, staleness=Polynomial() if staleness is None else staleness)
        if not 0 < mixing <= 1:
            raise ValueError(f"strategy.schedule.mixing={mixing}: must be above 0 and at most 1")
        self.mixing = mixing

    def adjusted(self, vectors: Tensors, plan: Plan, accepted: Sequence[ClientReport], state: ServerState) -> Tensors:
        """The step from the server's model towards the client's."""
        if not accepted:
            return vectors
        (part,) = plan.parts
        share = self.mixing * self.staleness(plan.whole.round - part.broadcast.round)
        behind = part.broadcast.vector.double() - state.vector.double()
        return {**vectors, "update": share * (vectors["update"] + behind)}
