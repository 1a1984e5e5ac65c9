"""What mechanisms of client-level differential privacy have in common: the bound of what a client contributes.

A client's contribution is all vectors that it sends, its update with buffers and whatever its strategy sends besides:
they are clipped as one vector, and each client counts once whatever its number of samples. The server divides the sum
by the expected number of clients, not by that of the round, and gives the strategy nothing but the noisy result: no
reports, no weights, no client memory. So the result moves by at most `clip / expected` when a client comes or goes.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flrl.kernels import scaled
from flrl.layout import ParameterLayout
from flrl.privacy.mechanism import Charged
from flrl.transforms.base import Transform
from flrl.types import ClientUpdate, Context, Known, Metrics, Tensors

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup

NOT_COVERED = (
    "what clients report and means of it: train/..., update/norm, updates/..., transforms/.../clipped",
    "evaluation on clients' samples: clients/..., and early stopping or a target by it",
    "who takes part, and how many: clients/num, clients.jsonl, digests.jsonl, which has checksums of updates too",
    "what clients remember, in checkpoints and clients/",
    "a run that ends because a client's training raises",
    "the choice of settings by earlier runs on the same clients",
    "numbers that a dataset computes of all clients' samples, as tabular ones do to standardise columns",
    "rounding: noise is drawn in float64, not on a grid",
    "rounds repeated after a kill on samples that have changed meanwhile, which get the noise they had",
)
OF_SEEDS = "the seeds in config.yaml: who has them can draw the cohorts"
OF_NOISE = (
    "the seed in config.yaml: who has it can draw the cohorts and the noise, and runs of one seed share their noise, "
    "so that models of two of them give it away: publish one run a seed, or privacy.secure_noise=true"
)


class Bounding(Transform):
    """Base class of mechanisms: clips what a client sends to a norm, and counts each client once.

    Args:
        clip: the bound, positive, in the units of an update.
        noise_multiplier: the noise over the bound, at least 0; None until it is calibrated to `privacy.epsilon`.
        per_layer: clip each parameter, buffer and further vector by itself, to equal parts of the bound (McMahan et
            al., ICLR 2018, arXiv 1710.06963): `clip / sqrt(m)` for m of them, or `clip / m` in the 1-norm.
        secure_noise: draw noise from the operating system instead of the run's seed.

    Raises:
        ValueError: a setting is invalid.
    """

    bounds_sensitivity = True
    noise_from: Literal["server", "client", "shares"] = "server"
    """Who adds the noise: the server, to the sum; each client, all that it needs; or each a share of the sum's."""
    unit: Literal["client", "sample"] = "client"
    by_client = False
    name = "dp"
    """Its yaml's name, for messages."""
    cohorts: Literal["poisson", "public", "planned"] = "poisson"
    """Whether sampling must be Poisson's (or everybody), since it is counted; any; or any that is known beforehand."""
    order: Literal[1, 2] = 2
    """Which norm is bounded."""

    def __init__(
        self,
        *,
        clip: float,
        noise_multiplier: float | None = None,
        per_layer: bool = False,
        secure_noise: bool = False,
    ) -> None:
        if not 0 < clip < math.inf:
            raise ValueError(f"strategy.transforms.{self.name}.clip={clip}: must be positive and finite")
        if noise_multiplier is not None and not 0 <= noise_multiplier < math.inf:
            raise ValueError(
                f"strategy.transforms.{self.name}.noise_multiplier={noise_multiplier}: must be at least 0 and finite, "
                "or null, which calibrates it to privacy.epsilon"
            )
        self.clip, self.noise_multiplier, self.per_layer = clip, noise_multiplier, per_layer
        self.secure_noise = secure_noise

    @abstractmethod
    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """All that has been released: see `flrl.privacy.Mechanism`."""

    @property
    def not_covered(self) -> Sequence[str]:
        """What leaves clients besides, and is not covered."""
        return (*NOT_COVERED, OF_SEEDS if self.secure_noise else OF_NOISE)

    def filled(self, setup: "Setup") -> Mapping[str, float]:
        """Settings of null that follow from the run, by name; none."""
        return {}

    def described(self) -> Mapping[str, Any]:
        """Its settings, for `summary.json`."""
        return {"kind": type(self).__name__, "clip": self.clip, "per_layer": self.per_layer}

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip all that the client sends; values that are not finite stay, and have the update rejected."""
        update, clipped = self.clipped(update, self.clip, context.layout)
        return update, memory, {"clipped": clipped}

    def clipped(self, update: ClientUpdate, clip: float, layout: ParameterLayout) -> tuple[ClientUpdate, float]:
        """An update of weight 1 and a norm of at most `clip`, and which share of its parts had a larger one."""
        if not self.per_layer:
            norms = [float(torch.linalg.vector_norm(vector, self.order)) for vector in update.vectors.values()]
            norm = math.hypot(*norms) if self.order == 2 else math.fsum(norms)
            if not norm > clip:
                return replace(update, weight=1.0), 0.0
            found = {name: scaled(vector, clip / norm) for name, vector in update.vectors.items()}
            known = {name: Known(vector, stats) for name, (vector, stats) in found.items()}
            vectors = {name: vector for name, (vector, _) in found.items()}
            return replace(update, vectors=vectors, known=known, weight=1.0), 1.0
        bounded = {name: vector.clone() for name, vector in update.vectors.items()}
        layers = [bounded["update"][entry.slice] for entry in layout.entries if bounded["update"].numel()]
        layers += [vector for name, vector in bounded.items() if name != "update"]
        each, shortened = clip / (math.sqrt(len(layers)) if self.order == 2 else len(layers)), 0
        for layer in layers:
            norm = float(torch.linalg.vector_norm(layer, self.order))
            if norm > each:
                layer.mul_(each / norm)
                shortened += 1
        return replace(update, vectors=bounded, weight=1.0), shortened / len(layers)

    def generator(self, context: Context) -> torch.Generator | None:
        """What draws the noise: None for the operating system."""
        return None if self.secure_noise else context.generator

    def multiplier(self) -> float:
        """The noise multiplier.

        Raises:
            ValueError: it has not been set.
        """
        if self.noise_multiplier is None:
            raise ValueError(
                f"strategy.transforms.{self.name}.noise_multiplier=null: set it, or privacy.epsilon, from which "
                "flrl-train calibrates it"
            )
        return self.noise_multiplier


def shares(vectors: Tensors, context: Context) -> dict[str, Tensor]:
    """The sums of what clients sent over the expected number of clients, from their means."""
    return {name: vector * (context.received / context.expected) for name, vector in vectors.items()}
