"""Inverting gradients: the angle between gradients and the images' total variation are minimised by signed Adam.

Geiping, Bauermeister, Dröge, Moeller, "Inverting Gradients: How easy is it to break privacy in federated learning?",
NeurIPS 2020, arXiv 2003.14053; for FedAvg the local steps are simulated, section 6. The labels, which the paper takes
as known, are read from the last layer. Total variation is a mean over pixels and not a sum.
"""

import torch
from torch import Tensor

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import Training, cosine_distance, generator_of, num_trained, objection_to, target_of
from flrl.attacks.labels import labels_of, objection_to_labels
from flrl.attacks.matching import Guess, Step, adam, best_of, boxed, check_at_least, check_positive, total_variation


class InvertingGradients(Attack):
    """Cosine distance of gradients plus total variation, in float32, within the inputs' range.

    Args:
        iterations: steps of Adam; the rate falls to a tenth after 3/8, 5/8 and 7/8 of them. 4,800 in the paper.
        restarts: searches from other noise, of which the one with the least objective is kept.
        lr: Adam's learning rate.
        total_variation: weight of the prior.
        signed: whether only the signs of the gradient count.
        tolerance: an objective that is good enough, so that no other restart follows.
        max_samples: more are not tried.
        max_steps: more local steps are not simulated.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, the update, how clients train."
    source = "Geiping, Bauermeister, Dröge, Moeller, NeurIPS 2020, arXiv 2003.14053"
    on_sums = True

    def __init__(
        self,
        *,
        iterations: int = 1000,
        restarts: int = 1,
        lr: float = 0.1,
        total_variation: float = 1e-3,
        signed: bool = True,
        tolerance: float = 1e-5,
        max_samples: int = 16,
        max_steps: int = 16,
    ) -> None:
        for name, value in (("iterations", iterations), ("restarts", restarts), ("max_samples", max_samples)):
            check_at_least(name, value, 1)
        check_at_least("max_steps", max_steps, 1)
        check_positive("lr", lr)
        check_at_least("total_variation", total_variation, 0)
        check_at_least("tolerance", tolerance, 0)
        self.iterations, self.restarts, self.lr, self.total_variation = iterations, restarts, lr, total_variation
        self.signed, self.tolerance, self.max_samples, self.max_steps = signed, tolerance, max_samples, max_steps

    def objection(self, observation: Observation) -> str | None:
        """Too many samples or steps, another optimizer than SGD, no last linear layer, or a mean of trained models."""
        found = objection_to(observation, max_samples=self.max_samples, max_steps=self.max_steps)
        return found or objection_to_labels(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Samples and labels."""
        training, target = Training.of(observation, torch.float32), target_of(observation, torch.float32)
        labels, shape = labels_of(observation), (num_trained(observation), *observation.inputs.shape)

        def search(restart: int, step: Step) -> Guess:
            generator = generator_of(observation, "inverting_gradients", restart)
            samples = torch.randn(shape, generator=generator).requires_grad_()

            def objective() -> Tensor:
                distance = cosine_distance(training.sent(samples, labels), target)
                return distance + self.total_variation * total_variation(samples)

            loss, done = adam(
                [samples],
                objective,
                lr=self.lr,
                iterations=self.iterations,
                signed=self.signed,
                box=lambda: _project(samples, observation),
                step=step,
            )
            return Guess((samples.detach(),), loss, restart, done)

        best = best_of(
            search, restarts=self.restarts, iterations=self.iterations, tolerance=self.tolerance, progress=progress
        )
        samples = best.tensors[0].to(observation.inputs.dtype)
        return Finding(inputs=samples, labels=labels, numbers=best.numbers)


def _project(samples: Tensor, observation: Observation) -> None:
    samples.copy_(boxed(samples, observation.inputs))
