"""Control variates: what SCAFFOLD and FedDC have in common."""

from dataclasses import replace

from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.lightning.plain_sgd import check_plain_sgd
from flrl.setup import Setup
from flrl.strategies.checking import check_mean
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem, Trained
from flrl.types import Aggregate, Broadcast, ClientUpdate, ServerState, Tensors


class Variates(FedAvg):
    """FedAvg with variates: c in the state's variables, c_i in a client's memory; an absent one is zero.

    A c_i has the model's dtype, c is float64: the same changes are added to both, so c stays the mean of the c_i.
    """

    accumulates = True

    def check(self, setup: Setup) -> None:
        """Refuse all optimizers but plain SGD, whose steps the variates are computed from, and all rules but the mean.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        check_plain_sgd(setup.module, setup.trainer)
        check_mean(setup.aggregator, f"{type(self).__name__}'s variates")

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the update, and of the change of the client's variate."""
        return {**super().vector_sizes(layout), "control": layout.num_trainable}

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model, and c in the model's dtype; in the first round there is no c to send."""
        sent = {"control": state.variables["control"].to(state.vector.dtype)} if "control" in state.variables else {}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step; c changes by the mean change over all clients, of which the cohort is a weighted share."""
        control = state.variables.get("control", 0.0) + aggregate.share * aggregate.vectors["control"]
        return replace(super().aggregate(state, aggregate, layout), variables={**state.variables, "control": control})


def mean_gradient(trained: Trained, own: Tensor, control: Tensor) -> Tensor:
    """A client's variate by option 2; one that took no step keeps its own."""
    if not trained.lr_sum > 0:
        return own
    return own.double() - control - trained.difference[: len(own)] / trained.lr_sum


def renewed(problem: LocalProblem, trained: Trained, own: Tensor, new: Tensor, memory: Tensors) -> ClientUpdate:
    """The update of a client whose variate was `own` and is `new`, which it remembers with what is in `memory`."""
    return trained.update(
        problem,
        vectors={"control": new.double() - own},
        memory={"control": new.cpu(), **memory},
        payload={"control": new.nbytes},
    )
