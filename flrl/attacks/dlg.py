"""Deep leakage from gradients: inputs and soft labels are varied together until their gradient is the observed one.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, with a line search in L-BFGS.
"""

import torch
from torch import Tensor

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import (
    Training,
    generator_of,
    num_trained,
    objection_to,
    squared_distance,
    target_of,
)
from flrl.attacks.matching import GOOD, Guess, Step, best_of, boxed, check_at_least, check_positive, lbfgs


class DLG(Attack):
    """Minimises the squared distance of gradients by L-BFGS in float64, from normal noise.

    Args:
        iterations: calls of L-BFGS, each of up to 20 inner iterations; 300 in the paper.
        restarts: searches from other noise while none has come within a hundred times `tolerance`.
        tolerance: a squared distance, relative to the observed gradient's squared norm, at which a search ends.
        max_samples: more are not tried.
        max_steps: more local steps are not simulated.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, the update, how clients train."
    source = "Zhu, Liu, Han, NeurIPS 2019, arXiv 1906.08935"
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
        for name, value in (("iterations", iterations), ("restarts", restarts)):
            check_at_least(name, value, 1)
        for name, value in (("max_samples", max_samples), ("max_steps", max_steps)):
            check_at_least(name, value, 1)
        check_positive("tolerance", tolerance)
        self.iterations, self.restarts, self.tolerance = iterations, restarts, tolerance
        self.max_samples, self.max_steps = max_samples, max_steps

    def objection(self, observation: Observation) -> str | None:
        """Too many samples or steps, another optimizer than SGD, no classes, or a mean of trained models."""
        return objection_to(observation, max_samples=self.max_samples, max_steps=self.max_steps)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Samples and labels."""
        training, target = Training.of(observation, torch.float64), target_of(observation, torch.float64)
        shape = (num_trained(observation), *observation.inputs.shape)
        scale = torch.stack([part.square().sum() for part in target]).sum().clamp(min=1e-30)
        assert observation.inputs.num_classes is not None
        classes = (shape[0], observation.inputs.num_classes)

        def search(restart: int, step: Step) -> Guess:
            generator = generator_of(observation, "dlg", restart)
            samples = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
            labels = torch.randn(classes, generator=generator, dtype=torch.float64).requires_grad_()

            def objective() -> Tensor:
                return squared_distance(training.sent(samples, labels.softmax(1)), target) / scale

            tensors = (samples, labels)
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
        return Finding(inputs=samples, labels=best.tensors[1].argmax(1), numbers=best.numbers)
