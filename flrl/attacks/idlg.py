"""Improved deep leakage from gradients: the label is read from the last layer, the image alone is searched for.

Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020, arXiv 2001.02610. As there, one sample.
"""

import torch
from torch import Tensor

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import Training, generator_of, num_trained, objection_to, squared_distance, target_of
from flrl.attacks.labels import labels_of, objection_to_labels
from flrl.attacks.matching import GOOD, Guess, Step, best_of, boxed, check_at_least, check_positive, lbfgs


class IDLG(Attack):
    """Minimises the squared distance of gradients by L-BFGS in float64, from normal noise.

    Args:
        iterations: calls of L-BFGS, each of up to 20 inner iterations; 300 in the paper.
        restarts: searches from other noise while none has come within a hundred times `tolerance`.
        tolerance: a squared distance, relative to the observed gradient's squared norm, at which a search ends.
        max_steps: more local steps (of the one sample) are not simulated.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, the update, how clients train."
    source = "Zhao, Mopuri, Bilen, 2020, arXiv 2001.02610"
    on_sums = True

    def __init__(
        self, *, iterations: int = 300, restarts: int = 3, tolerance: float = 1e-8, max_steps: int = 16
    ) -> None:
        for name, value in (("iterations", iterations), ("restarts", restarts), ("max_steps", max_steps)):
            check_at_least(name, value, 1)
        check_positive("tolerance", tolerance)
        self.iterations, self.restarts, self.tolerance, self.max_steps = iterations, restarts, tolerance, max_steps

    def objection(self, observation: Observation) -> str | None:
        """More than one sample, no last linear layer, or as for DLG."""
        if num_trained(observation) > 1:
            return f"is for one sample, and the update is of {num_trained(observation)}: use attack=dlg"
        return objection_to(observation, max_samples=1, max_steps=self.max_steps) or objection_to_labels(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """The sample and its label."""
        training, target = Training.of(observation, torch.float64), target_of(observation, torch.float64)
        labels, shape = labels_of(observation), (1, *observation.inputs.shape)
        scale = torch.stack([part.square().sum() for part in target]).sum().clamp(min=1e-30)

        def search(restart: int, step: Step) -> Guess:
            generator = generator_of(observation, "idlg", restart)
            sample = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

            def objective() -> Tensor:
                return squared_distance(training.sent(sample, labels), target) / scale

            loss, done = lbfgs([sample], objective, iterations=self.iterations, tolerance=self.tolerance, step=step)
            return Guess((sample.detach(),), loss, restart, done)

        best = best_of(
            search,
            restarts=self.restarts,
            iterations=self.iterations,
            tolerance=GOOD * self.tolerance,
            progress=progress,
        )
        samples = boxed(best.tensors[0], observation.inputs).to(observation.inputs.dtype)
        return Finding(inputs=samples, labels=labels, numbers=best.numbers)
