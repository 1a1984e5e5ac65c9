"""FedMD: clients with networks of their own learn from the mean of all clients' scores on public samples.

Li, Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", NeurIPS 2019 workshop, arXiv 1910.03581. A
client first learns the public samples with their classes and its own (transfer learning); in every round its scores are
sent and averaged, it learns the public samples with these averages (digest), and its own again (revisit). A round here
begins with the digest of the last round's average and ends with the sending, which is the same sequence. The paper's
code digests scores by their absolute error; here the loss is the module's own, cross-entropy with the softmax of the
average. The paper weighs clients equally, here samples do.

With `private_samples` it is FedMD-NFDP: Sun, Lyu, "Federated Model Distillation with Noise-Free Differential Privacy",
IJCAI 2021, arXiv 2009.05537.
"""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from flrl.devices import Work
from flrl.layout import ParameterLayout
from flrl.seeding import generator_for
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.distilling import PublicExchange, check_numbers, in_turn, on_public, one_hot
from flrl.strategies.workload import has
from flrl.trainers import LocalProblem
from flrl.trainers.predicting import predictions
from flrl.trainers.problem import PERSONAL
from flrl.types import Aggregate, ServerState


class FedMD(PublicExchange):
    """Exchanges scores on public samples; there is no global model, and nothing to evaluate centrally.

    Args:
        public_samples: number of public samples.
        num_classes: numbers in a sample's scores.
        transfer_epochs: passes over the public samples with their classes before a client's first round; with 0 the
            classes need not be known.
        digest_epochs: passes over the public samples in later rounds.
        private_samples: how many of its samples a client uses in the whole run, drawn once; null: all.
        replacement: whether they are drawn with replacement.
        options: as for `Strategy`, without `personal`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self,
        *,
        public_samples: int,
        num_classes: int,
        transfer_epochs: int = 1,
        digest_epochs: int = 1,
        private_samples: int | None = None,
        replacement: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(public_samples=public_samples, num_classes=num_classes, personal=["*"], **options)
        check_numbers(0, transfer_epochs=transfer_epochs)
        check_numbers(1, digest_epochs=digest_epochs)
        if private_samples is not None and private_samples < 1:
            raise ValueError(f"strategy.private_samples={private_samples}: must be at least 1, or null")
        self.transfer_epochs, self.digest_epochs = transfer_epochs, digest_epochs
        self.private_samples, self.replacement = private_samples, replacement

    def check(self, setup: Setup) -> None:
        """Refuse a federation without public samples, and clients with fewer samples than `private_samples`.

        Raises:
            ValueError: there is one, or as for `PublicExchange`.
        """
        super().check(setup)
        least = int(setup.sizes.min())
        if self.private_samples is not None and self.private_samples > least:
            raise ValueError(f"strategy.private_samples={self.private_samples}: a client has only {least} samples")

    @property
    def needs_classes(self) -> bool:
        """For transfer learning."""
        return self.transfer_epochs > 0

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """The public ones too: in transfer learning as long as there is no average, as if all began then; in digest."""
        epochs = self.digest_epochs if has(sent, "consensus") else self.transfer_epochs
        own = sizes if self.private_samples is None else np.minimum(sizes, self.private_samples)
        return work.samples(own) + epochs * self.public_samples

    def local(self, problem: LocalProblem) -> Local:
        """Transfer learning at first, then digest, revisit, and send scores."""
        sent, stages = problem.broadcast.variables, []
        if self.transfer_epochs and PERSONAL not in problem.task.memory and problem.public is not None:
            classes = one_hot(problem.public.labels, self.num_classes)
            stages.append(on_public(problem, classes, self.transfer_epochs))
        if "consensus" in sent:
            targets = sent["consensus"].view(-1, self.num_classes).softmax(dim=1)
            stages.append(on_public(problem, targets, self.digest_epochs))
        trained = yield from in_turn(problem, [*stages, {"indices": self._private(problem)}])
        scores = predictions(problem, trained.vector)
        update = trained.update(
            problem, vectors={"predictions": scores.flatten().double()}, payload={"predictions": scores.nbytes}
        )
        if self.private_samples is None:
            return update
        spent = noise_free_privacy(len(problem.indices), self.private_samples, replacement=self.replacement)
        named = dict(zip(("privacy/epsilon", "privacy/delta"), spent, strict=True))
        return replace(update, metrics={**update.metrics, **named})

    def _private(self, problem: LocalProblem) -> np.ndarray:
        """Indices of the client's samples that it uses, the same in every round."""
        if self.private_samples is None:
            return problem.indices
        rng = generator_for(problem.seed, 0, problem.task.client_id, "private samples")
        number = min(self.private_samples, len(problem.indices))  # a rehearsal has fewer
        return problem.indices[np.sort(rng.choice(len(problem.indices), number, replace=self.replacement))]

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """Keep the average scores; those of the round before where nobody has sent any."""
        if not aggregate.total_weight:
            return state
        return replace(state, variables={**state.variables, "consensus": aggregate.vectors["predictions"]})


def noise_free_privacy(num_samples: int, used: int, *, replacement: bool) -> tuple[float, float]:
    """The (epsilon, delta) of using a random part of the samples alone: theorems 1 and 2 of Sun and Lyu.

    Without replacement `(ln((n + 1) / (n + 1 - k)), k / n)`, with it `(k ln((n + 1) / n), 1 - ((n - 1) / n)^k)`. The
    part is drawn once, so that it holds for all that a client ever sends.

    Args:
        num_samples: n, of the client.
        used: k, at most n.
        replacement: whether they are drawn with replacement.

    Example:
        >>> noise_free_privacy(1, 1, replacement=False)
        (0.6931471805599453, 1.0)
    """
    n, k = num_samples, min(used, num_samples)
    if replacement:
        return k * math.log((n + 1) / n), 1 - ((n - 1) / n) ** k
    return math.log((n + 1) / (n + 1 - k)), k / n
