"""Steps that a strategy takes one by one: problems of one batch each, in the order of the trainer's settings."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from flrl.lightning.plain_sgd import check_plain_sgd, require_plain_sgd
from flrl.setup import Setup
from flrl.strategies.base import Strategy
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem, Trained
from flrl.types import Metrics, Tensors


class Stepping(FedAvg):
    """Base class of strategies whose clients take steps one by one.

    A scheduler within a round begins anew with every step; `trainer.lr_decay`, which is one of rounds, is kept.
    """

    def check(self, setup: Setup) -> None:
        """Refuse all optimizers but plain SGD, and personal parameters.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        check_plain_sgd(setup.module, setup.trainer)
        refuse_personal(self)


def refuse_personal(strategy: Strategy) -> None:
    """Raise ValueError if there are personal parameters, for strategies whose clients keep whole models of their own.

    Raises:
        ValueError: there are some.
    """
    if strategy.personal:
        why = f"{type(strategy).__name__} has clients keep whole models"
        raise ValueError(f"strategy.personal={list(strategy.personal)}: must be [], {why}")


def step(problem: LocalProblem, start: Tensor, number: int, **changes: Any) -> LocalProblem:
    """One step from a vector on a batch of the round; random layers draw the same numbers in all steps of a round.

    Args:
        problem: the client's problem as `Strategy.local` got it.
        start: `[layout.local_size]`, in any floating-point dtype.
        number: of the batch, counted from 0 in each round.
        changes: of further attributes.
    """
    start = start.to(problem.start.dtype)
    return replace(problem, start=start, steps=1, epochs=None, position=problem.position + number, **changes)


def gradient(problem: LocalProblem, trained: Trained) -> Tensor:
    """The gradient that a step of plain SGD went along, float64 `[layout.num_trainable]`; zeros if it took none.

    Raises:
        ValueError: the client's optimizer was not plain SGD.
    """
    require_plain_sgd(trained.not_plain_sgd)
    return -trained.difference[: problem.num_trainable] / (trained.lr_sum or 1.0)


@dataclass(slots=True)
class Steps:
    """What single steps of a client report together: it holds none of their vectors."""

    metrics: list[Metrics] = field(default_factory=list)
    num_steps: int = 0
    lr_sum: float = 0.0
    memory: Tensors = field(default_factory=dict)

    def add(self, trained: Trained) -> None:
        """Count one more, the last so far."""
        self.metrics.append(trained.metrics)
        self.num_steps += trained.num_steps
        self.lr_sum += trained.lr_sum
        self.memory = trained.memory

    def ended(self, problem: LocalProblem, vector: Tensor) -> Trained:
        """Their result, with the means of what they report.

        Args:
            problem: the client's problem as `Strategy.local` got it.
            vector: where they have ended, `[layout.local_size]`.
        """
        names = sorted({name for metrics in self.metrics for name in metrics})
        found = {name: [metrics[name] for metrics in self.metrics if name in metrics] for name in names}
        return Trained(
            start=problem.start,
            difference=vector.double() - problem.start,
            metrics={name: sum(values) / len(values) for name, values in found.items()},
            num_steps=self.num_steps,
            lr_sum=self.lr_sum,
            memory=self.memory,
        )
