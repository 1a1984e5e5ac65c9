"""SCAFFOLD: control variates take out the drift of clients whose data differ.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378. A client steps along `gradient - c_i + c`. The paper weighs clients equally; here sample weights
hold throughout, so that c is the weighted mean of the c_i of all clients after every round.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.full_gradient import full_gradient
from flrl.trainers.plain_sgd import check_plain_sgd, recorded_rates
from flrl.types import Aggregate, Broadcast, ClientUpdate, ServerState


class Scaffold(FedAvg):
    """FedAvg with control variates: c in the state's variables, c_i in a client's memory; an absent one is zero.

    A c_i has the model's dtype, c is float64: what is added to both is the same number, so c stays the mean of the c_i.

    Args:
        option: a client's new variate is its full gradient at the global model (1, costs a pass over its samples), or
            the mean of the gradients of its local steps, weighted by their learning rates (2). As the paper numbers.
        options: as for `FedAvg`.
    """

    def __init__(self, *, option: int = 2, **options: Any) -> None:
        super().__init__(**options)
        if option not in (1, 2):
            raise ValueError(f"strategy.option={option}: must be 1 or 2")
        self.option = option

    def check(self, module: pl.LightningModule, trainer: Trainer) -> None:
        """Refuse all local steps but those of plain SGD: of others, the variates would not be gradients."""
        check_plain_sgd(module, trainer)

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """The update, and the change of the client's variate."""
        return {**super().vector_sizes(layout), "control": layout.num_trainable}

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model, and c in the model's dtype; before anybody has trained there is no c to send."""
        sent = {name: variable.to(state.vector.dtype) for name, variable in state.variables.items()}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def local(self, problem: LocalProblem, trainer: Trainer) -> Generator[LocalProblem, ClientUpdate, ClientUpdate]:
        """Train along corrected gradients, and renew the client's variate."""
        task, sent, size = problem.task, problem.broadcast.variables, problem.model.layout.num_trainable
        zeros = problem.broadcast.vector.new_zeros(size)
        control, own = sent.get("control", zeros), task.memory.get("control", zeros).to(zeros.device)
        new = -full_gradient(problem, trainer).vectors["update"][:size] if self.option == 1 else own
        if sent:
            task = replace(task, memory={**task.memory, "correction": control - own})
        with recorded_rates() as rates:
            update = yield from super().local(replace(problem, task=task), trainer)
        if len(rates) < update.num_steps:
            raise ValueError(f"SCAFFOLD saw {len(rates)} of {update.num_steps} steps: they must be a torch optimizer's")
        total = sum(rates[: update.num_steps])  # clients beside this one may have taken more steps
        if self.option == 2 and total > 0:  # without a step there is nothing to learn from
            new = own.double() - control - update.vectors["update"][:size] / total
        new = new.to(own.dtype)
        vectors, memory = {**update.vectors, "control": new.double() - own}, {**update.memory, "control": new.cpu()}
        return replace(update, vectors=vectors, memory=memory, up_bytes=update.up_bytes + new.nbytes)

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, problem: LocalProblem) -> None:
        """Add `c - c_i`; nothing in the first round, where adding zeros would turn -0.0 into 0.0."""
        if "correction" in problem.task.memory:
            gradient.add_(problem.task.memory["correction"])

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step; c moves by the mean change over all clients, of which the cohort made its share."""
        control = state.variables.get("control", 0.0) + aggregate.share * aggregate.means["control"]
        return replace(super().aggregate(state, aggregate, layout), variables={**state.variables, "control": control})
