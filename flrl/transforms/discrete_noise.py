"""Integer noise in shares: each client adds a part of it, so that the sum is private and no server is trusted.

What the two transforms have in common: clipping, a random rotation, conditional randomised rounding to integers, and
sums modulo 2^bits; Kairouz, Liu, Steinke, ICML 2021, arXiv 2102.06387, algorithms 1 and 2. The rotation is another one,
see `flrl.transforms.rotation`, and the granularity follows from the settings before training.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from flrl.aggregation.mean import Mean
from flrl.privacy.discrete import RenyiEvent, rounded_l2
from flrl.seeding import EVERYBODY, seed_for
from flrl.transforms.base import Transform
from flrl.transforms.integer_noise import rounded
from flrl.transforms.rotation import rotated, rotated_back, width
from flrl.types import ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers of a round, which clients, server and accountant compute from the same settings.

    Attributes:
        size: numbers in an update.
        clients: how many are asked for an update.
        shares: how many of them send one at least.
        granularity: gamma, what 1 stands for, in the units of the update.
        norm: the clipping bound over the granularity.
        l2: the largest norm of an update of integers, before noise.
        deviation: of the noise of each client, in integers.
    """

    size: int
    clients: int
    shares: int
    granularity: float
    norm: float
    l2: float
    deviation: float


class DiscreteNoise(Transform):
    """Base class of transforms by which each client adds its share of integer noise to its clipped update.

    Args:
        max_norm: the bound on an update's Euclidean norm, positive.
        noise_multiplier: the standard deviation of the noise in the sum over `max_norm`, if only as many clients send
            an update as `dropouts` says; None: to be calibrated.
        dropouts: the largest part of a cohort whose updates, and noise, may be missing, in [0, 1).
        bits: of each number that a client sends; sums are modulo 2^bits.
        bias: beta, the probability at most with which a rounding is repeated, in [0, 1); the smaller, the larger the
            sensitivity.
        reach: how many standard deviations of a number of the sum stay below half the modulus.

    Raises:
        ValueError: a setting is invalid.
    """

    bounds_sensitivity = True
    needs_addends = True
    name: str
    unit: Literal["client"] = "client"
    by_client = True
    secure_noise = False
    not_covered: Sequence[str] = ("metrics that clients report",)

    def __init__(
        self,
        *,
        max_norm: float,
        noise_multiplier: float | None,
        dropouts: float = 0.0,
        bits: int = 16,
        bias: float = math.exp(-0.5),
        reach: float = 4.0,
    ) -> None:
        where = f"strategy.transforms.{self.name}"
        for key, value in (("max_norm", max_norm), ("reach", reach)):
            if not 0 < value < math.inf:
                raise ValueError(f"{where}.{key}={value}: must be positive and finite")
        if noise_multiplier is not None and not 0 < noise_multiplier < math.inf:
            raise ValueError(f"{where}.noise_multiplier={noise_multiplier}: must be positive and finite")
        for key, value in (("dropouts", dropouts), ("bias", bias)):
            if not 0 <= value < 1:
                raise ValueError(f"{where}.{key}={value}: must be at least 0 and below 1")
        if not 2 <= bits <= 24:
            raise ValueError(f"{where}.bits={bits}: must be from 2 to 24")
        self.max_norm, self.noise_multiplier, self.dropouts = max_norm, noise_multiplier, dropouts
        self.bits, self.bias, self.reach = bits, bias, reach

    def check(self, setup: "Setup") -> None:
        """Raise ValueError for parts with which the sum's sensitivity, or its noise, is not known."""
        where, strategy = f"strategy.transforms.{self.name}", setup.strategy
        if not isinstance(setup.aggregator, Mean):
            rule = type(setup.aggregator).__name__
            raise ValueError(f"{where}: the sensitivity of {rule} is not known: strategy/aggregator=mean")
        if set(strategy.vector_sizes(setup.layout)) != {"update"} or not strategy.sends_model or strategy.accumulates:
            name = type(strategy).__name__
            raise ValueError(
                f"{where}: the sensitivity of what {name} sends is not known; strategy=fedavg goes with it"
            )
        if strategy.schedule.overlaps:
            raise ValueError(f"{where}: needs all clients of a round to send at once: strategy/schedule=synchronous")
        if hasattr(setup.sampler, "weights"):
            name = type(setup.sampler).__name__
            raise ValueError(f"{where}: clients of {name} have weights of their own: strategy/sampler=uniform")
        parts = list(setup.transforms.items())
        place = next(index for index, (_, part) in enumerate(parts) if part is self)
        for key, part in parts[place + 1 :]:
            changes = type(part).client is not Transform.client or type(part).server is not Transform.server
            if changes and not part.hides_updates:
                raise ValueError(f"{where}: {key} would change integers with noise; put {key} first")
        clients = setup.most_updates
        if 4**self.bits <= self.reach**2 * clients:
            raise ValueError(f"{where}.bits={self.bits}: too few for sums of {clients} clients")
        if strategy.min_clients < self.shares(clients):
            raise ValueError(
                f"{where}.dropouts={self.dropouts:g}: {self.shares(clients)} of {clients} clients must send their "
                f"share of the noise, and strategy.min_clients={strategy.min_clients} allows fewer; set it to "
                f"{self.shares(clients)}, or allow more dropouts"
            )
        if not any(part.hides_updates for part in setup.transforms.values()):
            log.warning(
                "%s: the server sees each client's update with its share of the noise alone; epsilon holds for those "
                "who see sums: strategy/transforms=[%s,secagg]",
                where,
                self.name,
            )

    def shares(self, clients: int) -> int:
        """How many of so many clients send their share of the noise at least."""
        return max(1, math.ceil((1 - self.dropouts) * clients - 1e-9))

    def grid(self, size: int, clients: int, noise_multiplier: float) -> Grid:
        """The integers of a round.

        The modulus spans `reach` standard deviations of a number of the sum on both sides: its signal, if all clients
        send the same, its rounding and its noise (section 4 of arXiv 2102.06387, solved for gamma).

        Args:
            size: numbers in an update.
            clients: how many are asked for an update.
            noise_multiplier: of the noise of the smallest number of clients.
        """
        shares, norm = self.shares(clients), self.max_norm
        local = noise_multiplier * norm / math.sqrt(shares)
        signal, noise = (clients * norm) ** 2 / width(size), clients * local**2
        steps = (4**self.bits - self.reach**2 * clients) / 4
        gamma = self.reach * math.sqrt((signal + noise) / steps)
        l2 = rounded_l2(norm / gamma, size, self.bias)
        return Grid(size, clients, shares, gamma, norm / gamma, l2, local / gamma)

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip, rotate and round the client's update, and add its share of the noise, modulo 2^bits."""
        vector = update.vectors["update"].to("cpu", torch.float64)
        grid, norm = self._grid_of(context, len(vector)), float(vector.norm())
        if not math.isfinite(norm) or not len(vector):
            return replace(update, weight=1.0), memory, {"clipped": 0.0}
        clipped = vector * min(1.0, self.max_norm / norm) if norm > 0 else vector
        spread = rotated(clipped / grid.granularity, _rotation(context))
        whole = rounded(spread, grid.l2, context.generator) + self.noise(grid.deviation, grid.size, context.generator)
        sent = self._modulo(whole).to(update.vectors["update"].device)
        payload = {**update.payload, "update": -(-grid.size * self.bits // 8)}
        update = replace(update, vectors={"update": sent}, weight=1.0, payload=payload)
        return update, memory, {"clipped": float(norm > self.max_norm)}

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """The mean of the clipped updates, with noise: from the sum modulo 2^bits, rotated back."""
        count, size = round(context.received), len(vectors["update"])
        if not count or not size:
            return vectors, state, {}
        grid = self._grid_of(context, size)
        total = self._modulo((vectors["update"] * count).round()) * grid.granularity
        mean = rotated_back(total, _rotation(context)) / count
        deviation = math.sqrt(count) * grid.deviation * grid.granularity / count
        return {"update": mean}, state, {"granularity": grid.granularity, "std": deviation}

    def events(self, setup: "Setup", charged: Any, noise_multiplier: float) -> "Sequence[DpEvent]":
        """All that has been released, seen from the client that took part most often.

        Args:
            setup: the parts of the run.
            charged: a `flrl.privacy.Charged`: its `most()` is the largest number of rounds that a client took part in.
            noise_multiplier: the transform's own, or one that is tried.
        """
        from dp_accounting import SelfComposedDpEvent

        grid = self.grid(setup.strategy.vector_sizes(setup.layout)["update"], setup.most_updates, noise_multiplier)
        return [SelfComposedDpEvent(self.event(grid), charged.most())]

    def described(self) -> Mapping[str, Any]:
        """Its settings."""
        return {"kind": self.name, "max_norm": self.max_norm, "dropouts": self.dropouts, "bits": self.bits}

    @abstractmethod
    def noise(self, deviation: float, size: int, generator: torch.Generator) -> Tensor:
        """A client's share of the noise, whole numbers in float64 `[size]`."""

    @abstractmethod
    def event(self, grid: Grid) -> RenyiEvent:
        """What a round releases."""

    def _grid_of(self, context: Context, size: int) -> Grid:
        if self.noise_multiplier is None:
            raise ValueError(f"strategy.transforms.{self.name}.noise_multiplier=null: set it, or privacy.epsilon")
        return self.grid(size, int(context.public["addends"]), self.noise_multiplier)

    def _modulo(self, whole: Tensor) -> Tensor:
        """Whole numbers modulo 2^bits, from -2^(bits - 1) on."""
        half = 2.0 ** (self.bits - 1)
        return torch.remainder(whole + half, 2 * half) - half


def _rotation(context: Context) -> int:
    """The seed of a round's rotation, the same for all clients and the server."""
    return seed_for(context.seed, context.round, EVERYBODY, "transforms/discrete_noise/rotation")
