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

from flrl.privacy import Charged
from flrl.privacy.discrete import RenyiEvent, rounded_l2
from flrl.seeding import EVERYBODY, seed_for
from flrl.transforms.base import Transform
from flrl.transforms.bounding import NOT_COVERED, OF_NOISE, OF_SEEDS
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
        shares: how many clients' noise is in the sum at least.
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
        clip: the bound on an update's Euclidean norm, positive.
        noise_multiplier: standard deviation of the noise of `survivors` clients together over `clip`, at least 0; None
            until it is calibrated to `privacy.epsilon`.
        survivors: how many clients' shares make up the noise, at least 1: as many as will answer in a round; None: all
            that are asked. Where fewer answer, the server adds what is missing before the strategy sees the sum: such a
            round has its noise towards everybody but the server.
        bits: of each number that a client sends; sums are modulo 2^bits.
        bias: beta, the probability at most with which a rounding is repeated, in [0, 1); the smaller, the larger the
            sensitivity.
        reach: how many standard deviations of a number of the sum stay below half the modulus.
        secure_noise: draw noise and roundings from the operating system instead of the run's seed.

    Raises:
        ValueError: a setting is invalid.
    """

    bounds_sensitivity = True
    needs_addends = True
    name: str
    unit: Literal["client"] = "client"
    cohorts: Literal["public"] = "public"
    by_client = True
    noise_from: Literal["shares"] = "shares"

    def __init__(
        self,
        *,
        clip: float,
        noise_multiplier: float | None = None,
        survivors: int | None = None,
        bits: int = 16,
        bias: float = math.exp(-0.5),
        reach: float = 4.0,
        secure_noise: bool = False,
    ) -> None:
        where = f"strategy.transforms.{self.name}"
        for key, value in (("clip", clip), ("reach", reach)):
            if not 0 < value < math.inf:
                raise ValueError(f"{where}.{key}={value}: must be positive and finite")
        if noise_multiplier is not None and not 0 <= noise_multiplier < math.inf:
            raise ValueError(f"{where}.noise_multiplier={noise_multiplier}: must be at least 0 and finite, or null")
        if survivors is not None and survivors < 1:
            raise ValueError(f"{where}.survivors={survivors}: must be at least 1, or null for all")
        if not 2 <= bits <= 24:
            raise ValueError(f"{where}.bits={bits}: must be from 2 to 24")
        if not 0 <= bias < 1:
            raise ValueError(f"{where}.bias={bias}: must be at least 0 and below 1")
        self.clip, self.noise_multiplier, self.survivors = clip, noise_multiplier, survivors
        self.bits, self.bias, self.reach, self.secure_noise = bits, bias, reach, secure_noise

    @property
    def not_covered(self) -> Sequence[str]:
        """What leaves clients besides, and is not covered."""
        phrases = [phrase for phrase in NOT_COVERED if not phrase.startswith("rounding")]
        return (*phrases, OF_SEEDS if self.secure_noise else OF_NOISE)

    def check(self, setup: "Setup") -> None:
        """Raise ValueError for what would not keep integers, besides what all mechanisms refuse."""
        where, strategy = f"strategy.transforms.{self.name}", setup.strategy
        if set(strategy.vector_sizes(setup.layout)) != {"update"} or not strategy.sends_model or strategy.accumulates:
            name = type(strategy).__name__
            raise ValueError(
                f"{where}: the sensitivity of what {name} sends is not known; strategy=fedavg goes with it"
            )
        clients = setup.most_updates
        if self.survivors is not None and self.survivors > clients:
            raise ValueError(f"{where}.survivors={self.survivors}: a round has at most {clients} clients")
        if 4**self.bits <= self.reach**2 * clients:
            raise ValueError(f"{where}.bits={self.bits}: too few for sums of {clients} clients")
        if not any(part.hides_updates for part in setup.transforms.values()):
            log.warning(
                "%s: the server sees each client's update with its share of the noise alone; epsilon holds for those "
                "who see sums: add secagg, paillier or ckks after it",
                where,
            )

    def grid(self, size: int, clients: int, noise_multiplier: float) -> Grid:
        """The integers of a round.

        The modulus spans `reach` standard deviations of a number of the sum on both sides: its signal, if all clients
        send the same, its rounding and its noise: how arXiv 2102.06387 chooses the bits, solved for gamma.

        Args:
            size: numbers in an update.
            clients: how many are asked for an update.
            noise_multiplier: of the noise of as many clients as make it up.
        """
        shares = self.survivors or clients
        local = noise_multiplier * self.clip / math.sqrt(shares)
        signal, noise = (clients * self.clip) ** 2 / width(size), clients * local**2
        steps = (4**self.bits - self.reach**2 * clients) / 4
        gamma = self.reach * math.sqrt((signal + noise) / steps)
        l2 = rounded_l2(self.clip / gamma, size, self.bias)
        return Grid(size, clients, shares, gamma, self.clip / gamma, l2, local / gamma)

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip, rotate and round the client's update, and add its share of the noise, modulo 2^bits."""
        vector = update.vectors["update"].to("cpu", torch.float64)
        grid, norm = self._grid_of(context, len(vector)), float(vector.norm())
        if not math.isfinite(norm):
            return replace(update, weight=1.0), memory, {"clipped": 0.0}
        clipped = vector * min(1.0, self.clip / norm) if norm > 0 else vector
        generator = self._generator(context)
        whole = rounded(rotated(clipped / grid.granularity, _rotation(context)), grid.l2, generator)
        whole += self.noise(grid.deviation, grid.size, generator)
        sent = self._modulo(whole).to(update.vectors["update"].device)
        payload = {**update.payload, "update": -(-grid.size * self.bits // 8)}
        update = replace(update, vectors={"update": sent}, weight=1.0, payload=payload)
        return update, memory, {"clipped": float(norm > self.clip)}

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """The noisy sum of clipped updates over the expected number of clients: from the sum modulo 2^bits."""
        count, size = round(context.received), len(vectors["update"])
        grid = self._grid_of(context, size)
        whole, missing = (vectors["update"] * count).round(), max(0, grid.shares - count)
        for _ in range(missing):
            whole = whole + self.noise(grid.deviation, size, self._generator(context))
        total = rotated_back(self._modulo(whole) * grid.granularity, _rotation(context))
        deviation = math.sqrt(count + missing) * grid.deviation * grid.granularity / context.expected
        numbers = {"granularity": grid.granularity, "std": deviation, "missing": float(missing)}
        return {"update": total / context.expected}, state, numbers

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """All that has been released, seen from the client that took part most often.

        Args:
            setup: the parts of the run.
            charged: what has been released.
            noise_multiplier: the transform's own, or one that is tried.
        """
        from dp_accounting import SelfComposedDpEvent

        grid = self.grid(setup.strategy.vector_sizes(setup.layout)["update"], setup.most_updates, noise_multiplier)
        return [SelfComposedDpEvent(self.event(grid), charged.most())]

    def filled(self, setup: "Setup") -> Mapping[str, float]:
        """Settings of null that follow from the run, by name; none."""
        return {}

    def described(self) -> Mapping[str, Any]:
        """Its settings, for `summary.json`."""
        return {"kind": type(self).__name__, "clip": self.clip, "survivors": self.survivors, "bits": self.bits}

    @abstractmethod
    def noise(self, deviation: float, size: int, generator: torch.Generator | None) -> Tensor:
        """A client's share of the noise, whole numbers in float64 `[size]`."""

    @abstractmethod
    def event(self, grid: Grid) -> RenyiEvent:
        """What a round releases."""

    def _grid_of(self, context: Context, size: int) -> Grid:
        if self.noise_multiplier is None:
            raise ValueError(f"strategy.transforms.{self.name}.noise_multiplier=null: set it, or privacy.epsilon")
        return self.grid(size, int(context.sent["addends"]), self.noise_multiplier)

    def _generator(self, context: Context) -> torch.Generator | None:
        return None if self.secure_noise else context.generator

    def _modulo(self, whole: Tensor) -> Tensor:
        """Whole numbers modulo 2^bits, from -2^(bits - 1) on."""
        half = 2.0 ** (self.bits - 1)
        return torch.remainder(whole + half, 2 * half) - half


def _rotation(context: Context) -> int:
    """The seed of a round's rotation, the same for all clients and the server."""
    return seed_for(context.seed, context.round, EVERYBODY, "transforms/discrete_noise/rotation")
