"""Devices of a few kinds: each client has one of them, drawn by its share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flrl.devices.base import Devices, Table
from flrl.devices.laws import law_of

_NUMBERS = ("samples_per_s", "up_bytes_per_s", "down_bytes_per_s", "latency_s")


class Profiles(Devices):
    """Devices of a few kinds.

    Args:
        kinds: by name, each with `share` (any positive number), `samples_per_s`, `up_bytes_per_s`, `down_bytes_per_s`
            and `latency_s`; each a number or a law.
        options: `availability`, `dropout` and `stragglers`, as for `Devices`.

    Raises:
        ValueError: there is no kind, or a setting is out of range.
    """

    def __init__(self, *, kinds: Mapping[str, Mapping[str, Any]], **options: Any) -> None:
        super().__init__(**options)
        if not kinds:
            raise ValueError("devices.kinds: there must be at least one")
        for name, kind in kinds.items():
            if not isinstance(kind, Mapping):
                raise ValueError(f"devices.kinds.{name}={kind}: must be a mapping of {', '.join(_NUMBERS)}")
            unknown = sorted(set(kind) - {"share", *_NUMBERS})
            if unknown:
                raise ValueError(
                    f"devices.kinds.{name}.{unknown[0]}: there is no such number; {', '.join(_NUMBERS)} are"
                )
            share = kind.get("share", 1.0)
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < math.inf:
                raise ValueError(f"devices.kinds.{name}.share={share}: must be a positive, finite number")
        self.shares = np.array([float(kind.get("share", 1.0)) for kind in kinds.values()])
        self.laws = [
            [
                law_of(kind.get(number, 0.0 if number == "latency_s" else None), f"kinds.{name}.{number}")
                for number in _NUMBERS
            ]
            for name, kind in kinds.items()
        ]

    def kind_of(self, num_clients: int, rng: np.random.Generator) -> np.ndarray:
        """The kind of every client's device, int64 `[num_clients]`."""
        return rng.choice(len(self.shares), num_clients, p=self.shares / self.shares.sum())

    def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Table:
        """The numbers of every client's device: arguments as for `Devices.table`."""
        kinds = self.kind_of(len(sizes), rng)
        return Table(*(_chosen(kinds, [laws[place] for laws in self.laws], rng) for place in range(4)))


def _chosen(kinds: np.ndarray, laws: Sequence[Any], rng: np.random.Generator) -> np.ndarray:
    drawn = np.stack([law.draw(len(kinds), rng) for law in laws])
    return np.asarray(drawn[kinds, np.arange(len(kinds))])
