"""The client privacy leakage attack: a patterned start, the label from the last layer, and a label regulariser.

Wei et al., "A Framework for Evaluating Gradient Leakage Attacks in Federated Learning", ESORICS 2020, arXiv 2004.10397,
algorithm 1: L-BFGS on the squared distance of gradients plus alpha times that of the output to the label.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import Training, generator_of, num_trained, objection_to, squared_distance, target_of
from flrl.attacks.labels import labels_of, objection_to_labels
from flrl.attacks.matching import GOOD, Guess, Step, best_of, boxed, check_at_least, check_positive, lbfgs

STARTS = ("patch", "geometric", "constant", "noise")


class CPL(Attack):
    """Minimises the squared distance of gradients, by the observed squared norm, by L-BFGS in float64.

    Args:
        start: "patch" (a small random patch repeated over the image), "geometric" (the same in vertical stripes),
            "constant" (one random level) or "noise"; inputs that are no images start at noise unless it is constant.
        patches: number of patches along each edge.
        alpha: weight of the squared distance between the softmax of the output and the label.
        iterations: calls of L-BFGS, each of up to 20 inner iterations; 300 in the paper.
        restarts: searches from other starts while none has come within a hundred times `tolerance`.
        tolerance: an objective at which a search ends.
        max_samples: more are not tried.
        max_steps: more local steps are not simulated.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, the update, how clients train."
    source = "Wei et al., ESORICS 2020, arXiv 2004.10397"
    on_sums = True

    def __init__(
        self,
        *,
        start: Literal["patch", "geometric", "constant", "noise"] = "patch",
        patches: int = 4,
        alpha: float = 0.0,
        iterations: int = 300,
        restarts: int = 3,
        tolerance: float = 1e-8,
        max_samples: int = 8,
        max_steps: int = 16,
    ) -> None:
        if start not in STARTS:
            raise ValueError(f"attack.start={start!r}: must be one of {', '.join(STARTS)}")
        for name, value in (("patches", patches), ("iterations", iterations), ("restarts", restarts)):
            check_at_least(name, value, 1)
        for name, value in (("max_samples", max_samples), ("max_steps", max_steps)):
            check_at_least(name, value, 1)
        check_at_least("alpha", alpha, 0)
        check_positive("tolerance", tolerance)
        self.start, self.patches, self.alpha, self.iterations = start, patches, alpha, iterations
        self.restarts, self.tolerance, self.max_samples, self.max_steps = restarts, tolerance, max_samples, max_steps

    def objection(self, observation: Observation) -> str | None:
        """As for `InvertingGradients`."""
        found = objection_to(observation, max_samples=self.max_samples, max_steps=self.max_steps)
        return found or objection_to_labels(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Samples and labels."""
        training, target = Training.of(observation, torch.float64), target_of(observation, torch.float64)
        labels, classes = labels_of(observation), observation.inputs.num_classes
        assert classes is not None
        wanted = nn.functional.one_hot(labels, classes).to(torch.float64)
        scale = torch.stack([part.square().sum() for part in target]).sum().clamp(min=1e-30)

        def search(restart: int, step: Step) -> Guess:
            samples = self._start(observation, restart).requires_grad_()

            def objective() -> Tensor:
                distance = squared_distance(training.sent(samples, labels), target) / scale
                if self.alpha == 0:
                    return distance
                return distance + self.alpha * (training.outputs(samples).softmax(1) - wanted).square().sum()

            loss, done = lbfgs([samples], objective, iterations=self.iterations, tolerance=self.tolerance, step=step)
            return Guess((samples.detach(),), loss, restart, done)

        best = best_of(
            search,
            restarts=self.restarts,
            iterations=self.iterations,
            tolerance=GOOD * self.tolerance,
            progress=progress,
        )
        samples = boxed(best.tensors[0], observation.inputs).to(observation.inputs.dtype)
        return Finding(inputs=samples, labels=labels, numbers=best.numbers)

    def _start(self, observation: Observation, restart: int) -> Tensor:
        """The first guess, `[n, *shape]`."""
        shape, generator = (
            (num_trained(observation), *observation.inputs.shape),
            generator_of(observation, "cpl", restart),
        )
        if self.start == "constant":
            return torch.rand((shape[0],) + (1,) * (len(shape) - 1), generator=generator).double().expand(shape).clone()
        if self.start == "noise" or len(shape) != 4:
            return torch.randn(shape, generator=generator, dtype=torch.float64)
        samples, channels, height, width = shape
        down, across = -(-height // self.patches), -(-width // self.patches)
        patch = torch.rand(samples, channels, down, across, generator=generator, dtype=torch.float64)
        if self.start == "geometric":
            patch = patch[:, :, :1, :].expand(-1, -1, down, -1)
        return patch.repeat(1, 1, self.patches, self.patches)[:, :, :height, :width].clone()
