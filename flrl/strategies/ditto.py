"""Ditto: beside the global model, each client trains one of its own that is kept near the global one.

Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv
2012.04221, algorithm 1. The global model is FedAvg's; the client's own minimises `loss(v) + lam / 2 * ||v - w||^2`, w
the model that the server has sent, with as many local steps as the global one takes. It starts from the global model
when the client first takes part; the paper starts it from the initial one. Clients are weighted by samples.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Tensors


class Ditto(FedAvg):
    """FedAvg whose clients keep a model of their own, which is evaluated as the personal one and never sent.

    Args:
        lam: weight of the proximal term, at least 0; 0 trains each client's own model alone, as `LocalOnly`.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    evaluates: Sequence[str] = ("own",)
    passes = 2.0

    def __init__(self, *, lam: float, **options: Any) -> None:
        super().__init__(**options)
        if not lam >= 0:
            raise ValueError(f"strategy.lam={lam}: must be at least 0")
        self.lam = lam

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """The client's own model; before the client has taken part, what it will start from."""
        return problem.task.memory.get("own", problem.start)

    def local(self, problem: LocalProblem) -> Local:
        """Train the global model, then the client's own, whose optimizer starts afresh."""
        trained = yield problem
        near = {"global": problem.broadcast.vector[: problem.num_trainable]}
        start, task = self.personal_model(problem), replace(problem.task, memory={})
        own = yield replace(problem, task=task, start=start, values=near)
        return trained.update(problem, memory={"own": own.vector.cpu()})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the proximal term's gradient, `lam * (v - w)`, to that of the client's own model."""
        if "global" in values:
            gradient.add_(parameters - values["global"], alpha=self.lam)
