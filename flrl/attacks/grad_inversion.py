"""GradInversion: batches of images from one gradient, by priors of images, of BatchNorm, and of agreement over seeds.

Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021, arXiv 2104.07586. Differences:
seeds agree with their pixelwise mean, without registration (images of a batch stand in the same order, since labels are
fixed); the distance of gradients is relative to the observed norm; BatchNorm's statistics are those of the observed
batch where the update gives them away, else the running ones; noise in the pixels is not added.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import (
    Training,
    generator_of,
    num_steps,
    num_trained,
    objection_to,
    squared_distance,
    squared_norm,
    target_of,
)
from flrl.attacks.labels import labels_of, objection_to_labels
from flrl.attacks.matching import Guess, adam, boxed, check_at_least, check_positive, total_variation

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance of each channel before each BatchNorm layer, by its name."""


class GradInversion(Attack):
    """Minimises the relative squared distance of gradients plus priors by Adam, over several seeds at once.

    Args:
        seeds: groups of guesses that are to agree.
        iterations: steps of Adam, with rates as in `adam`.
        lr: Adam's learning rate.
        total_variation: weight of that prior.
        norm: weight of the images' mean square.
        batch_norm: weight of the distance to BatchNorm's statistics.
        group: weight of the mean squared distance to the seeds' mean, from a quarter of the iterations on.
        max_samples: more are not tried.
        max_steps: more local steps are not simulated.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, the update with its buffers."
    source = "Yin et al., CVPR 2021, arXiv 2104.07586"
    on_sums = True

    def __init__(
        self,
        *,
        seeds: int = 4,
        iterations: int = 1000,
        lr: float = 0.1,
        total_variation: float = 1e-3,
        norm: float = 1e-6,
        batch_norm: float = 0.1,
        group: float = 0.01,
        max_samples: int = 16,
        max_steps: int = 16,
    ) -> None:
        for name, value in (("seeds", seeds), ("iterations", iterations), ("max_samples", max_samples)):
            check_at_least(name, value, 1)
        check_at_least("max_steps", max_steps, 1)
        check_positive("lr", lr)
        weights = {"total_variation": total_variation, "norm": norm, "batch_norm": batch_norm, "group": group}
        for name, weight in weights.items():
            check_at_least(name, weight, 0)
        self.seeds, self.iterations, self.lr, self.weights = seeds, iterations, lr, weights
        self.max_samples, self.max_steps = max_samples, max_steps

    def objection(self, observation: Observation) -> str | None:
        """As for `InvertingGradients`."""
        found = objection_to(observation, max_samples=self.max_samples, max_steps=self.max_steps)
        return found or objection_to_labels(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Samples and labels; the seed whose gradient is nearest."""
        training, target = Training.of(observation, torch.float32), target_of(observation, torch.float32)
        labels, statistics = labels_of(observation), statistics_of(observation)
        scale = squared_norm(target)
        generator = generator_of(observation, "grad_inversion")
        shape = (self.seeds, num_trained(observation), *observation.inputs.shape)
        groups = torch.randn(shape, generator=generator).requires_grad_()
        distances, done = [0.0] * self.seeds, 0

        def objective() -> Tensor:
            total = groups.new_zeros(())
            for seed, samples in enumerate(groups):
                with observed_statistics(training) as found:
                    distance = squared_distance(training.sent(samples, labels), target) / scale
                distances[seed] = float(distance.detach())
                total = total + distance + self.weights["total_variation"] * total_variation(samples)
                total = total + self.weights["norm"] * samples.square().mean()
                total = total + self.weights["batch_norm"] * statistics_distance(found, statistics)
            if self.seeds > 1 and done >= self.iterations // 4:
                total = total + self.weights["group"] * self.seeds * (groups - groups.mean(0)).square().mean()
            return total

        def step(number: int, loss: float) -> None:
            nonlocal done
            done = number
            progress(number / self.iterations, f"{number}/{self.iterations}, objective {loss:.2e}")

        def box() -> None:
            groups.copy_(boxed(groups, observation.inputs))

        adam([groups], objective, lr=self.lr, iterations=self.iterations, signed=True, box=box, step=step)
        best = min(range(self.seeds), key=distances.__getitem__)
        guess = Guess((groups[best].detach(),), distances[best], best, self.iterations)
        return Finding(inputs=guess.tensors[0].to(observation.inputs.dtype), labels=labels, numbers=guess.numbers)


@contextmanager
def observed_statistics(training: Training) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Record mean and unbiased variance before each BatchNorm layer, at each call, while the module is called."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    handles = []
    for name, layer in training.user_module.named_modules():
        if isinstance(layer, _BatchNorm):

            def note(layer: object, arguments: tuple[Tensor, ...], name: str = name) -> None:
                channels = arguments[0].transpose(0, 1).flatten(1)
                found.setdefault(name, []).append((channels.mean(1), channels.var(1)))

            handles.append(layer.register_forward_pre_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def statistics_distance(found: dict[str, list[tuple[Tensor, Tensor]]], wanted: Statistics) -> Tensor:
    """Sum over the layers of the distances of mean and variance (formula 10), averaged over calls."""
    distances = [
        torch.stack([pair[part] for pair in found[name]]).mean(0).sub(wanted[name][part]).norm()
        for name in wanted
        for part in (0, 1)
        if name in found
    ]
    return torch.stack(distances).sum() if distances else torch.zeros(())


def statistics_of(observation: Observation) -> Statistics:
    """The statistics of the observed batch: exact for one batch, a mean over several; the running ones without change.

    After T batches of equal statistics s the running ones are (1 - m)^T r + (1 - (1 - m)^T) s, where r was sent.
    """
    places = {entry.name: entry.slice for entry in observation.layout.entries if entry.kind == "buffer"}
    local, statistics = observation.local, {}
    batches = -(-num_trained(observation) // local.batch_size) if local.only_gradient else num_steps(observation)
    for name, layer in observation.module.named_modules():
        if not isinstance(layer, _BatchNorm) or f"{name}.running_mean" not in places:
            continue
        share = 1.0 if layer.momentum is None else 1 - (1 - layer.momentum) ** batches
        mean, variance = (
            (observation.sent[place] + observation.update[place] / share).float()
            for place in (places[f"{name}.running_mean"], places[f"{name}.running_var"])
        )
        statistics[name] = (mean, variance)
    return statistics
