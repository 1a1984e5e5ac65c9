"""DS-FL: clients and server learn from sharpened averages of the clients' predictions on public samples.

Itahara, Nishio, Koda, Morikura, Yamamoto, "Distillation-Based Semi-Supervised Federated Learning for
Communication-Efficient Collaborative Training with Non-IID Private Data", IEEE Transactions on Mobile Computing 2021,
arXiv 2008.06180. A client trains on its own samples and sends class probabilities of the public ones; their average is
sharpened by a softmax (entropy reduction aggregation), and clients and server train on it. The paper draws some public
samples for each round, here all are exchanged; a client distils at the beginning of its next round, which is the same
sequence. The paper weighs clients equally, here samples do.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from flrl.devices import Work
from flrl.layout import ParameterLayout
from flrl.strategies.base import Local, OnServer
from flrl.strategies.distilling import PublicExchange, check_numbers, in_turn, on_public
from flrl.strategies.workload import has
from flrl.trainers import LocalProblem
from flrl.trainers.predicting import predictions
from flrl.types import Aggregate, ServerState


class DSFL(PublicExchange):
    """Exchanges class probabilities of public samples, whose classes need not be known; the global model is distilled.

    Args:
        public_samples: number of public samples.
        num_classes: numbers in a prediction.
        temperature: of entropy reduction, `softmax(mean / temperature)`; null averages simply.
        distill_epochs: passes over the public samples, by clients and by the server.
        options: as for `Strategy`, without `personal`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self,
        *,
        public_samples: int,
        num_classes: int,
        temperature: float | None = 0.1,
        distill_epochs: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(public_samples=public_samples, num_classes=num_classes, personal=(), **options)
        check_numbers(1, distill_epochs=distill_epochs)
        if temperature is not None and not 0 < temperature < float("inf"):
            raise ValueError(f"strategy.temperature={temperature}: must be positive and finite, or null")
        self.temperature, self.distill_epochs = temperature, distill_epochs

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """The public ones too, once there is something to distil."""
        return work.samples(sizes) + self.distill_epochs * self.public_samples * has(sent, self.shared)

    def local(self, problem: LocalProblem) -> Local:
        """Learn the public samples with the average, then the client's own, and send predictions."""
        sent = problem.broadcast.variables
        stages = [self._distilled(problem, sent["consensus"])] if "consensus" in sent else []
        trained = yield from in_turn(problem, [*stages, {}])
        found = predictions(problem, trained.vector).softmax(dim=1)
        return trained.update(
            problem, vectors={"predictions": found.flatten().double()}, payload={"predictions": found.nbytes}
        )

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """Keep the sharpened average; that of the round before where nobody has sent anything."""
        if not aggregate.total_weight:
            return state
        mean = aggregate.vectors["predictions"].view(-1, self.num_classes)
        consensus = mean if self.temperature is None else entropy_reduced(mean, self.temperature)
        return replace(state, variables={**state.variables, "consensus": consensus.flatten()})

    def server(self, state: ServerState, problem: LocalProblem) -> OnServer:
        """Train the global model on the average."""
        if "consensus" not in state.variables:
            return state
        trained = yield replace(problem, **self._distilled(problem, state.variables["consensus"]))
        return replace(state, vector=trained.vector)

    def _distilled(self, problem: LocalProblem, consensus: Tensor) -> dict[str, Any]:
        return on_public(problem, consensus.view(-1, self.num_classes), self.distill_epochs)


def entropy_reduced(mean: Tensor, temperature: float) -> Tensor:
    """Sharpen averages of class probabilities, equation 10 of the paper; shapes `[n, classes]`.

    Example:
        >>> import torch
        >>> entropy_reduced(torch.tensor([[0.6, 0.4]]), 0.1)  # 1 / (1 + e^-2)
        tensor([[0.8808, 0.1192]])
    """
    return (mean / temperature).softmax(dim=1)
