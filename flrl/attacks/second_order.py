"""What DLG, iDLG and CPL have in common: L-BFGS in float64 on the squared distance of gradients, with restarts."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import Training, objection_to, squared_distance, squared_norm, target_of
from flrl.attacks.matching import GOOD, Guess, Step, best_of, boxed, check_at_least, check_positive, lbfgs


class SecondOrder(Attack):
    """Base class: a subclass says where a search starts, which labels it tries, and what is added to the distance.

    Args:
        iterations: calls of L-BFGS, each of up to 20 inner iterations; 300 in the papers.
        restarts: searches from other starts while none has come within a hundred times `tolerance`.
        tolerance: an objective, relative to the observed gradient's squared norm, at which a search ends.
        max_samples: more are not tried.
        max_steps: more local steps are not simulated.

    Raises:
        ValueError: a setting is out of range.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, the update, how clients train."
    on_sums = True

    def __init__(
        self,
        *,
        iterations: int = 300,
        restarts: int = 3,
        tolerance: float = 1e-8,
        max_samples: int = 8,
        max_steps: int = 16,
    ) -> None:
        counts = {"iterations": iterations, "restarts": restarts, "max_samples": max_samples, "max_steps": max_steps}
        for name, value in counts.items():
            check_at_least(name, value, 1)
        check_positive("tolerance", tolerance)
        self.iterations, self.restarts, self.tolerance = iterations, restarts, tolerance
        self.max_samples, self.max_steps = max_samples, max_steps

    def objection(self, observation: Observation) -> str | None:
        """Too many samples or steps, another optimizer than SGD, no classes, or a mean of trained models."""
        return objection_to(observation, max_samples=self.max_samples, max_steps=self.max_steps)

    @abstractmethod
    def start(self, observation: Observation, restart: int) -> Sequence[Tensor]:
        """What is varied, float64: samples `[n, *shape]` first."""

    def known_labels(self, observation: Observation) -> Tensor | None:
        """The labels, int64 `[n]`, if they are read from the update first; None where they are varied too."""
        return None

    def labels(self, tensors: Sequence[Tensor], known: Tensor | None) -> Tensor:
        """The labels that the loss is given: classes, or their probabilities."""
        assert known is not None
        return known

    def regulariser(self, training: Training, tensors: Sequence[Tensor], known: Tensor | None) -> Tensor | None:
        """What is added to the distance, if anything."""
        return None

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Samples and labels."""
        training, target = Training.of(observation, torch.float64), target_of(observation, torch.float64)
        known, scale = self.known_labels(observation), squared_norm(target)

        def search(restart: int, step: Step) -> Guess:
            tensors = [tensor.requires_grad_() for tensor in self.start(observation, restart)]

            def objective() -> Tensor:
                distance = squared_distance(training.sent(tensors[0], self.labels(tensors, known)), target) / scale
                added = self.regulariser(training, tensors, known)
                return distance if added is None else distance + added

            loss, done = lbfgs(tensors, objective, iterations=self.iterations, tolerance=self.tolerance, step=step)
            return Guess(tuple(tensor.detach() for tensor in tensors), loss, restart, done)

        best = best_of(
            search,
            restarts=self.restarts,
            iterations=self.iterations,
            tolerance=GOOD * self.tolerance,
            progress=progress,
        )
        samples = boxed(best.tensors[0], observation.inputs).to(observation.inputs.dtype)
        labels = self.labels(best.tensors, known)
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        return Finding(inputs=samples, labels=classes, numbers=best.numbers)
