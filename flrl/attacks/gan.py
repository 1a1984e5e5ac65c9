"""The GAN attack: a client trains a generator of a class that it has no samples of, against each global model.

Hitaj, Ateniese, Pérez-Cruz, "Deep Models Under the GAN: Information Leakage from Collaborative Deep Learning", CCS
2017, arXiv 1702.07464. In each round the attacker trains the global model on its own samples and on generated ones
under a wrong class, and the generator against the result. This half is done here, over the global models of a finished
run. The other half is not: there the attacker sends its poisoned model, so that victims give away more in later
rounds. Public samples of other classes than the target stand for the attacker's own. Unlike the paper, the generator is
also kept near a normal distribution that is fitted to them, whatever their class: few rounds without poisoning are not
enough to take from it what deceives a model and looks like nothing.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flrl.attacks.base import Attack, Finding, Inputs, Observation, Progress
from flrl.attacks.confidence import class_scores, needs_scores
from flrl.attacks.samples import gathered, joined
from flrl.attacks.shadow import Shadows
from flrl.data import TensorSource
from flrl.lightning.modes import evaluating
from flrl.seeding import SERVER, generator_for, isolated_randomness, seed_for


class GAN(Attack):
    """Generates samples of a class from the global models of all rounds up to the observed one.

    Args:
        target: the class to be generated, which the attacker has no samples of.
        fake: the class under which the attacker trains generated samples; null: a random wrong class for each.
        prior: weight of how far generated samples are from the normal distribution of the attacker's own.
        steps: steps of the generator in a round.
        lr: its learning rate (Adam).
        batch_size: generated samples in a step.
        latent: random numbers of a generated sample.
        samples: number of generated samples that are shown.

    Raises:
        ValueError: a setting is invalid.
    """

    knows = "a client that takes part: sees the global model of every round, has samples of other classes"
    source = "Hitaj et al., CCS 2017, arXiv 1702.07464"
    on_sums = True

    def __init__(
        self,
        *,
        target: int = 0,
        fake: int | None = None,
        prior: float = 0.3,
        steps: int = 40,
        lr: float = 0.002,
        batch_size: int = 64,
        latent: int = 32,
        samples: int = 32,
    ) -> None:
        if target < 0:
            raise ValueError(f"attack.target={target}: must be a class from 0 on")
        if fake is not None and (fake < 0 or fake == target):
            raise ValueError(f"attack.fake={fake}: must be another class than attack.target={target}, or null")
        counts = {"steps": steps, "batch_size": batch_size, "latent": latent, "samples": samples}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"attack.{name}={value}: must be at least 1")
        if not prior >= 0:
            raise ValueError(f"attack.prior={prior}: must be at least 0")
        if not lr > 0:
            raise ValueError(f"attack.lr={lr}: must be positive")
        self.target = target
        self.fake = fake
        self.prior = prior
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.latent = latent
        self.samples = samples

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: no models, classes or samples of the attacker's, no images."""
        inputs = observation.inputs
        if observation.model_before is None:
            return "needs the global models of all rounds"
        if observation.local.only_gradient:
            return "clients take no steps, so the attacker has no training to hide its samples in"
        if not inputs.dtype.is_floating_point:
            return f"needs inputs that can be changed a little, and these are {inputs.dtype}"
        reason = super().objection(observation) or needs_scores(observation)
        most = max(self.target, self.fake or 0)
        if reason is None and most >= (inputs.num_classes or 0):
            return f"attack.target={self.target}, attack.fake={self.fake}: there are {inputs.num_classes} classes"
        if reason is None and (observation.public is None or not len(self.own(observation))):
            return "needs public samples of other classes, for the attacker's own"
        return reason

    def own(self, observation: Observation) -> np.ndarray:
        """Indices of the public samples that stand for the attacker's own: none of the target class."""
        public = observation.public
        if public is None or public.labels is None:
            return np.empty(0, np.int64)
        return np.flatnonzero(public.labels != self.target)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Train a generator over the rounds."""
        assert observation.model_before is not None
        assert observation.public is not None
        rng = generator_for(observation.seed, 0, SERVER, "attack/gan")
        others = self.own(observation)
        size = min(observation.num_samples, len(others))
        own = gathered(observation.public, rng.choice(others, size, replace=False))
        shadows, last, prior = Shadows(observation), observation.round + 1, Normal(own.inputs)
        with isolated_randomness(seed_for(observation.seed, 0, SERVER, "attack/gan"), torch.device("cpu")):
            generator = Generator(self.latent, observation.inputs)
            optimizer = torch.optim.Adam(generator.parameters(), lr=self.lr, betas=(0.5, 0.999))
            made = self.made(generator, 0)
            for round in range(1, last + 1):
                made = torch.cat([made, self.made(generator, max(1, len(own) // 4))])
                mixed = self.mixed(own, made, observation.inputs.num_classes or 0)
                start, whole = observation.model_before(round), [np.arange(len(mixed))]
                vector = shadows.train(mixed, whole, lambda share, text: None, start=start, round=round)[0]
                tensors = observation.layout.unflatten(vector)
                with evaluating(observation.module):
                    for _ in range(self.steps):
                        self.step(observation.module, tensors, prior, generator, optimizer)
                progress(round / last, f"round {round} of {last}")
            found = self.made(generator, self.samples)
        labels = torch.full((self.samples,), self.target)
        scores = class_scores(observation, observation.model_before(last), TensorSource(found, labels))
        success = (scores.argmax(1) == labels).double().mean()
        return Finding(inputs=found, labels=labels, numbers={"success": float(success)})

    def made(self, generator: "Generator", num: int) -> Tensor:
        """Generated samples."""
        with torch.no_grad():
            made: Tensor = generator(torch.randn(num, self.latent))
        return made

    def mixed(self, own: TensorSource, made: Tensor, num_classes: int) -> TensorSource:
        """What the attacker trains on: its own samples, and among them as many generated ones as of another class."""
        count = max(1, len(own) // max(1, num_classes - 1))
        chosen = made[torch.randperm(len(made))[:count]]
        wrong = (self.target + torch.randint(1, num_classes, (len(chosen),))) % num_classes
        labels = wrong if self.fake is None else torch.full_like(wrong, self.fake)
        return joined(own, TensorSource(chosen, labels)).subset(torch.randperm(len(own) + len(chosen)).numpy())

    def step(
        self,
        module: nn.Module,
        tensors: dict[str, Tensor],
        prior: "Normal",
        generator: "Generator",
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Train the generator to be taken for the target class by the attacker's model."""
        made = generator(torch.randn(self.batch_size, self.latent))
        wanted = torch.full((self.batch_size,), self.target)
        loss = nn.functional.cross_entropy(functional_call(module, tensors, (made,)), wanted)
        loss = loss + self.prior * prior.distances(made).mean().to(loss.dtype)
        parameters = list(generator.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


class Normal:
    """A normal distribution fitted to samples, with 5 % of their mean variance added to each number's.

    Args:
        samples: `[n, ...]`.
    """

    def __init__(self, samples: Tensor) -> None:
        flat = samples.flatten(1).double()
        self.mean = flat.mean(0)
        self.rows = (flat - self.mean) / max(1, len(flat) - 1) ** 0.5
        self.ridge = max(0.05 * float(self.rows.square().sum(0).mean()), 1e-12)
        small = self.rows @ self.rows.T + self.ridge * torch.eye(len(flat), dtype=torch.float64)
        self.inverse = torch.linalg.inv(small)

    def distances(self, samples: Tensor) -> Tensor:
        """The squared Mahalanobis distance of each sample over the number of its numbers, float64 `[n]`."""
        away = samples.flatten(1).double() - self.mean
        along = away @ self.rows.T  # by Woodbury's identity only a matrix of the size of the samples is inverted
        inside: Tensor = ((along @ self.inverse) * along).sum(1)
        return (away.square().sum(1) - inside) / (self.ridge * away.shape[1])


class Generator(nn.Module):
    """Makes inputs of random numbers.

    Images grow from a quarter of their size by two transposed convolutions, other inputs come from dense layers.

    Args:
        latent: random numbers of a sample.
        inputs: shape and range of samples.
    """

    def __init__(self, latent: int, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs
        shape = inputs.shape
        if len(shape) == 3 and min(shape[1:]) >= 4:
            channels, height, width = shape
            small = (-(-height // 4), -(-width // 4))
            self.layers = nn.Sequential(
                nn.Linear(latent, 64 * small[0] * small[1]),
                nn.ReLU(),
                nn.Unflatten(1, (64, *small)),
                nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1),
            )
        else:
            sizes = [latent, 128, 128, int(np.prod(shape))]
            dense = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
            self.layers = nn.Sequential(*dense[:-1], nn.Unflatten(1, shape))

    def forward(self, latent: Tensor) -> Tensor:
        """Samples in the range of inputs, `[n, *inputs.shape]`."""
        made = self.layers(latent)
        if len(self.inputs.shape) == 3:
            made = made[:, :, : self.inputs.shape[1], : self.inputs.shape[2]]
        share = torch.sigmoid(made).to(self.inputs.dtype)
        return self.inputs.low + (self.inputs.high - self.inputs.low) * share
