"""DP-SGD: clipped gradients of single samples, in Poisson batches, with Gaussian noise on their sum.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep Learning with Differential Privacy", CCS 2016, arXiv
1607.00133, algorithm 1. A batch has each sample with the same probability, independently; the sum of clipped gradients
is divided by the expected size of a batch, since its true one would tell of single samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from flrl.privacy import Charged, sampled_gaussian
from flrl.seeding import generator_for, seed_for
from flrl.trainers.private.checking import check_module, check_parts
from flrl.trainers.problem import LocalProblem
from flrl.transforms.bounding import NOT_COVERED, OF_NOISE, OF_SEEDS
from flrl.transforms.noise import normal, uniforms

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup
    from flrl.trainers.base import Trainer


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """Settings of DP-SGD, `trainer.private`.

    The trainer's `batch_size` is the expected size of a batch: of n samples each is in a batch with probability
    `min(1, batch_size / n)`, and an epoch has `ceil(n / batch_size)` steps. `shuffle` has no effect.

    Args:
        max_norm: the largest norm of a sample's gradient; larger ones are scaled down to it. Infinite does not clip,
            which takes a noise multiplier of 0.
        noise_multiplier: the noise's standard deviation over `max_norm`; null: the smallest with which the client that
            spends most is within `privacy.epsilon` after the whole run.
        clipping: "flat" bounds the norm of a gradient by `max_norm`; "per_layer" that of each of K parameters by
            `max_norm / sqrt(K)`, so that the norm of the whole is bounded too.
        sampling: "poisson".
        secure_noise: draw noise and batches from the operating system, and not from the run's seed.
        physical_batch_size: the most samples whose gradients are in memory at once; null: all of a batch. Steps do not
            depend on it but for rounding, and for dropout's random numbers.

    Raises:
        ValueError: a setting is invalid.
    """

    max_norm: float
    noise_multiplier: float | None
    clipping: Literal["flat", "per_layer"] = "flat"
    sampling: Literal["poisson"] = "poisson"
    physical_batch_size: int | None = None
    secure_noise: bool = False

    unit: ClassVar[Literal["sample"]] = "sample"
    by_client: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"trainer.private.max_norm={self.max_norm}: must be positive")
        noise = self.noise_multiplier
        if noise is not None and not 0 <= noise < math.inf:
            raise ValueError(f"trainer.private.noise_multiplier={noise}: must be at least 0 and finite, or null")
        if self.max_norm == math.inf and noise != 0:
            raise ValueError("trainer.private.max_norm=inf: there is no noise for it but noise_multiplier=0")
        if self.clipping not in ("flat", "per_layer"):
            raise ValueError(f"trainer.private.clipping={self.clipping!r}: must be 'flat' or 'per_layer'")
        if self.sampling != "poisson":
            raise ValueError(
                f"trainer.private.sampling={self.sampling!r}: must be 'poisson', epsilon is counted for it"
            )
        if self.physical_batch_size is not None and self.physical_batch_size < 1:
            raise ValueError(
                f"trainer.private.physical_batch_size={self.physical_batch_size}: must be at least 1, or null"
            )

    def check(self, setup: "Setup") -> None:
        """Refuse what would release something of samples besides the noisy gradients.

        Raises:
            ValueError: module, strategy, transforms or sampler do.
        """
        check_module(setup.module)
        check_parts(setup)

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "list[DpEvent]":
        """The sampled Gaussians of each client's samples, but those of clients that others surpass.

        A client of n samples that took part p times has taken p times the steps of a round, each with probability
        `min(1, batch_size / n)` of a sample.
        """
        trainer, found = setup.trainer, set()
        for size, times in {*zip(setup.sizes.tolist(), charged.participations.tolist(), strict=True)}:
            if size and times:
                steps = times * steps_of_round(trainer, setup.strategy, size)
                found.add((sampling_probability(size, trainer.batch_size), steps))
        worst, most = [], 0
        for probability, steps in sorted(found, reverse=True):
            if steps > most:
                worst.append(sampled_gaussian(noise_multiplier, probability, steps))
                most = steps
        return worst

    def filled(self, setup: "Setup") -> Mapping[str, float]:
        """Nothing."""
        return {}

    def described(self) -> Mapping[str, Any]:
        """Norm, clipping and sampling."""
        return {"kind": "dp_sgd", "max_norm": self.max_norm, "clipping": self.clipping, "sampling": self.sampling}

    @property
    def not_covered(self) -> Sequence[str]:
        """What leaves clients besides."""
        sizes = "numbers of samples, by which clients are weighed and batches are drawn"
        return (*NOT_COVERED, sizes, OF_SEEDS if self.secure_noise else OF_NOISE)

    @property
    def std(self) -> float:
        """The noise's standard deviation on the sum of clipped gradients."""
        if self.noise_multiplier is None:
            raise ValueError("trainer.private.noise_multiplier=null: set it, or privacy.epsilon, from which it follows")
        return self.noise_multiplier * self.max_norm if self.noise_multiplier else 0.0

    def batch(self, problem: LocalProblem, batch_size: int, step: int) -> np.ndarray:
        """The samples of a step, a Poisson sample of the client's: indices in their fixed order, int64 `[any]`.

        Args:
            problem: the client's problem.
            batch_size: the expected number of samples.
            step: the step, counted from 0 in each training.
        """
        probability = sampling_probability(len(problem.indices), batch_size)
        if probability == 1:
            return problem.indices
        if self.secure_noise:
            return problem.indices[uniforms(len(problem.indices)) < probability]
        task = problem.task
        rng = generator_for(problem.seed, task.round, task.client_id, f"dp_sgd/batch/{problem.training}/{step}")
        return problem.indices[rng.random(len(problem.indices)) < probability]

    def noise(self, problem: LocalProblem, size: int, step: int) -> Tensor:
        """The noise of a step, float64 `[size]` on the CPU; arguments as for `batch`."""
        if not self.std:
            return torch.zeros(size, dtype=torch.float64)
        generator = None
        if not self.secure_noise:
            task = problem.task
            seed = seed_for(problem.seed, task.round, task.client_id, f"dp_sgd/noise/{problem.training}/{step}")
            generator = torch.Generator().manual_seed(seed)
        return normal(size, generator).mul_(self.std)

    def chunks(self, indices: np.ndarray) -> list[np.ndarray]:
        """A batch's indices in parts of at most `physical_batch_size`."""
        most = self.physical_batch_size or max(1, len(indices))
        return [indices[start : start + most] for start in range(0, len(indices), most)]

    def rows(self, count: int, batch_size: int) -> int:
        """The number of rows that a part of a batch with `count` samples is filled up to, so that few sizes occur."""
        step = max(8, batch_size // 8)
        filled = step * math.ceil(count / step)
        return filled if self.physical_batch_size is None else min(filled, max(count, self.physical_batch_size))


def sampling_probability(num_samples: int, batch_size: int) -> float:
    """The probability of each of a client's samples in each step."""
    return min(1.0, batch_size / num_samples) if num_samples else 1.0


def steps_of_round(trainer: "Trainer", strategy: Any, num_samples: int) -> int:
    """The most steps that a client takes in a round, of all its trainings together."""
    epochs = trainer.local_epochs * math.ceil(num_samples / trainer.batch_size)
    passes: float = strategy.passes
    return math.ceil(passes * (epochs if trainer.local_steps is None else trainer.local_steps))
