"""SCAFFOLD: control variates take out the drift of clients whose data differ.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378. A client steps along `gradient - c_i + c`. The paper weighs clients equally; here sample weights
hold throughout, so that c is the weighted mean of the c_i of all clients after every round.
"""

from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from flrl.layout import ParameterLayout
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.full_gradient import full_gradient
from flrl.trainers.stand_in import TrainerStandIn, attached, configure
from flrl.types import Aggregate, Broadcast, ClientUpdate, ServerState


class Scaffold(FedAvg):
    """FedAvg with control variates: c in the state's variables, c_i in the client's memory, zeros where absent.

    A c_i has the model's dtype, c is float64: their differences are exact there, so c stays the mean of the c_i.

    Args:
        option: the paper's: a client's new variate is its full gradient at the global model (1, costs a pass over its
            samples), or the mean of the gradients it stepped along, weighted by learning rate (2).
        options: as for `FedAvg`.
    """

    def __init__(self, *, option: int = 2, **options: Any) -> None:
        super().__init__(**options)
        if option not in (1, 2):
            raise ValueError(f"strategy.option={option}: must be 1 or 2")
        self.option = option

    def check(self, module: pl.LightningModule, trainer: Trainer) -> None:
        """Refuse local steps other than those of plain SGD, of which the variates would be no gradients."""
        with attached(module, TrainerStandIn(trainer.local_epochs, 1)) as stand_in:
            _plain_rate(configure(module, stand_in)[0])
        clip = getattr(trainer, "trainer_options", {}).get("gradient_clip_val", trainer.gradient_clip_val)
        if clip is not None:
            raise ValueError(f"SCAFFOLD corrects unclipped gradients: trainer.gradient_clip_val={clip} must be null")

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """The update and the change of the client's variate."""
        return {**super().vector_sizes(layout), "control": layout.num_trainable}

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model and c, in the model's dtype; nothing is sent for the zeros of the first round."""
        sent = {name: variable.to(state.vector.dtype) for name, variable in state.variables.items()}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def train(self, problem: LocalProblem, trainer: Trainer) -> ClientUpdate:
        """Train along corrected gradients and renew the client's variate, which is kept where no step was taken."""
        task, sent, rates = problem.task, problem.broadcast.variables, list[float]()
        zeros = problem.broadcast.vector.new_zeros(problem.model.layout.num_trainable)
        control, own = sent.get("control", zeros), task.memory.get("control", zeros).to(zeros.device)
        if sent:
            task = replace(task, memory={**task.memory, "correction": control - own})
        new = -full_gradient(problem, trainer).vectors["update"][: len(own)] if self.option == 1 else own
        hook = register_optimizer_step_post_hook(lambda optimizer, *_: rates.append(_plain_rate(optimizer)))
        try:
            update = self.finish(trainer.fit(replace(problem, task=task), self), problem)
        finally:
            hook.remove()
        if len(rates) != update.num_steps:
            raise ValueError(f"SCAFFOLD saw {len(rates)} of the {update.num_steps} steps that the trainer took")
        if self.option == 2 and sum(rates):
            new = own.double() - control - update.vectors["update"][: len(own)] / sum(rates)
        new = new.to(own.dtype)
        vectors = {**update.vectors, "control": new.double() - own}
        memory, up_bytes = {**update.memory, "control": new.cpu()}, update.up_bytes + new.nbytes
        return replace(update, vectors=vectors, memory=memory, up_bytes=up_bytes)

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, problem: LocalProblem) -> None:
        """Add `c - c_i`, unless both are absent: zeros would turn -0.0 into 0.0."""
        if "correction" in problem.task.memory:
            gradient.add_(problem.task.memory["correction"])

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step; and c moves by the mean change over all clients, of which the cohort made its share."""
        control = state.variables.get("control", 0.0) + aggregate.share * aggregate.means["control"]
        return replace(super().aggregate(state, aggregate, layout), variables={**state.variables, "control": control})


def _plain_rate(optimizer: Optimizer) -> float:
    """The learning rate of plain SGD; ValueError for anything else."""
    names = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    groups = optimizer.param_groups
    faults = [f"{name}={group[name]}" for group in groups for name in names if group.get(name)]
    if type(optimizer) is not SGD or faults or len({float(group["lr"]) for group in groups}) > 1:
        given = ", ".join([type(optimizer).__name__, *faults, f"lr={[group['lr'] for group in groups]}"])
        raise ValueError(f"SCAFFOLD needs clients with plain torch.optim.SGD and one learning rate, got {given}")
    return float(groups[0]["lr"])
