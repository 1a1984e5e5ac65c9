"""Per-FedAvg: a global model from which one step of each client leads to a good personal one (MAML).

Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic Meta-Learning
Approach", NeurIPS 2020, arXiv 2002.07948, algorithm 1. A local step is
`w <- w - beta * (I - alpha * H(w; D'')) * g(w - alpha * g(w; D); D')` on batches D, D', D'' in turn; without H in the
first-order version (FO), and with `H d` as `(g(w + delta d) - g(w - delta d)) / (2 delta)` in the Hessian-free one
(HF). Clients are weighted by samples; in the paper equally.
"""

from collections.abc import Collection, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.devices import Work
from flrl.strategies.base import Local
from flrl.strategies.stepping import Stepping, Steps, gradient, step
from flrl.trainers import LocalProblem, Trained


class PerFedAvg(Stepping):
    """FedAvg of models to be adapted by a step: `clients/finetuned/...` with `evaluation.finetune_steps=1`.

    Alpha is the model's learning rate. Of the batches of the trainer's settings a local step takes two in turn (FO) or
    three (HF), so that a client sees as many samples as with FedAvg; at least one step is taken. The global model by
    itself is not meant to be good: `test/...` and `clients/global/...` are before the adapting step.

    Args:
        beta: learning rate of the local steps, positive.
        hessian_free: whether the Hessian's part is approximated (HF) or left out (FO).
        delta: of the difference quotient, positive.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, beta: float = 0.01, hessian_free: bool = False, delta: float = 0.001, **options: Any) -> None:
        super().__init__(**options)
        for name, value in (("beta", beta), ("delta", delta)):
            if not value > 0:
                raise ValueError(f"strategy.{name}={value}: must be positive")
        self.beta = beta
        self.hessian_free = hessian_free
        self.delta = delta

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """Those of whole pairs of batches; or of threes, of which the last is gone through twice."""
        batches = 3 if self.hessian_free else 2
        steps = np.maximum(1, work.num_steps(sizes) // batches) * batches
        return work.samples_of_steps(sizes, steps) * ((batches + self.hessian_free) / batches)

    def local(self, problem: LocalProblem) -> Local:
        """Take the local steps.

        Raises:
            ValueError: the client's optimizer was not plain SGD.
        """
        vector, size, steps = problem.start.double(), problem.num_trainable, Steps()
        batches = 3 if self.hessian_free else 2
        for first in range(0, max(1, problem.num_steps // batches) * batches, batches):
            adapted = yield step(problem, vector, first)
            steps.add(adapted)
            ahead = yield step(problem, adapted.vector, first + 1)
            steps.add(ahead)
            along = gradient(problem, ahead)
            if self.hessian_free:
                along = along - adapted.lr_sum * (yield from self._curved(problem, vector, along, first + 2, steps))
            vector = torch.cat([vector[:size] - self.beta * along, ahead.vector[size:].double()])
        return steps.ended(problem, vector).update(problem)

    def _curved(
        self, problem: LocalProblem, vector: Tensor, along: Tensor, number: int, steps: Steps
    ) -> Generator[LocalProblem, Trained, Tensor]:
        """The Hessian at a vector times `along`, on one batch, by a central difference: float64 `[num_trainable]`."""
        found = []
        for sign in (1, -1):
            moved = vector.clone()
            moved[: len(along)] += sign * self.delta * along
            trained = yield step(problem, moved, number)
            steps.add(trained)
            found.append(gradient(problem, trained))
        return (found[0] - found[1]) / (2 * self.delta)
