"""Algorithms that ask most of `Strategy.local`: several trainings, other starts, parts of the model."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.strategies import FedAvg
from flrl.strategies.base import Local
from flrl.trainers import LocalProblem
from flrl.types import Tensors


class Ditto(FedAvg):
    """Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021.

    A client trains the global model, and beside it one of its own that a proximal term keeps near the global one.
    """

    def __init__(self, *, lam: float, **options: Any) -> None:
        super().__init__(**options)
        self.lam = lam

    def local(self, problem: LocalProblem) -> Local:
        trained = yield problem
        start = problem.task.memory.get("own", problem.start)
        near = {"global": problem.start[: problem.num_trainable]}
        own = yield replace(problem, start=start, values=near)
        return trained.update(problem, memory={"own": own.vector.cpu()})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        if "global" in values:
            gradient.add_(parameters - values["global"], alpha=self.lam)


class FedRep(FedAvg):
    """Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning",
    ICML 2021: the personal head is trained first, then, for one epoch, what is shared."""

    def __init__(self, *, head_epochs: int, **options: Any) -> None:
        super().__init__(**options)
        self.head_epochs = head_epochs

    def local(self, problem: LocalProblem) -> Local:
        layout = problem.model.layout
        head = frozenset(entry.name for entry in layout.personal)
        body = frozenset(entry.name for entry in layout.entries)
        first = yield replace(problem, trainable=head, epochs=self.head_epochs)
        second = yield first.next(problem, trainable=body, epochs=1)
        return second.update(problem)
