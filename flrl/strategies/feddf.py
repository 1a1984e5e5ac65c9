"""FedDF: the averaged model learns the clients' mean scores on public samples, as an ensemble would give them.

Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020, arXiv
2006.07242, algorithm 1 with the average of scores: `KL(softmax(mean of the clients' scores), softmax(student))`, whose
gradient is that of cross-entropy. In the paper the server computes the scores from the models that it gets; here each
client does, from its trained model, so that the server keeps none: the same numbers, but sent, and counted. The paper
weighs clients equally in the ensemble, here samples do, and stops early by a validation set, here after
`server_epochs`.
"""

from dataclasses import replace
from typing import Any

from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local, OnServer
from flrl.strategies.distilling import check_numbers, check_public, on_public
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.trainers.predicting import predictions
from flrl.types import Aggregate, ServerState


class FedDF(FedAvg):
    """FedAvg with ensemble distillation on the server, on public samples whose classes need not be known.

    Args:
        public_samples: number of public samples.
        num_classes: numbers in a sample's scores.
        server_epochs: the server's passes over the public samples in a round; 0 is FedAvg.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, public_samples: int, num_classes: int, server_epochs: int = 1, **options: Any) -> None:
        super().__init__(**options)
        check_numbers(0, public_samples=public_samples, server_epochs=server_epochs)
        check_numbers(1, num_classes=num_classes)
        self.public_samples, self.num_classes, self.server_epochs = public_samples, num_classes, server_epochs

    def check(self, setup: Setup) -> None:
        """Refuse a federation without public samples.

        Raises:
            ValueError: as for `check_public`.
        """
        super().check(setup)
        check_public(setup, self.public_samples, self.num_classes)

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the update, and of the scores."""
        return {**super().vector_sizes(layout), "predictions": self.public_samples * self.num_classes}

    def local(self, problem: LocalProblem) -> Local:
        """Train, and send the trained model's scores with it."""
        trained = yield problem
        scores = predictions(problem, trained.vector)
        return trained.update(
            problem, vectors={"predictions": scores.flatten().double()}, payload={"predictions": scores.nbytes}
        )

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step, and the ensemble's scores for `server`."""
        after = super().aggregate(state, aggregate, layout)
        if not aggregate.total_weight:
            return after
        return replace(after, variables={**after.variables, "ensemble": aggregate.vectors["predictions"]})

    def server(self, state: ServerState, problem: LocalProblem) -> OnServer:
        """Distil the ensemble into the averaged model."""
        variables = dict(state.variables)
        ensemble = variables.pop("ensemble", None)
        if ensemble is None or not self.server_epochs:
            return replace(state, variables=variables)
        targets = ensemble.view(-1, self.num_classes).softmax(dim=1)
        trained = yield replace(problem, **on_public(problem, targets, self.server_epochs))
        return replace(state, vector=trained.vector[: problem.model.layout.size], variables=variables)
