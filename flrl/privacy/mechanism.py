"""What gives a run its privacy, and what has been released of it: the two that are needed to count epsilon."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup


@dataclass(frozen=True, slots=True)
class Charged:
    """What has been released, or is about to be.

    Attributes:
        releases: of rounds; with secure noise a repeated round is another release.
        participations: in how many of them each client took part, int64 `[num_clients]`; zeros for mechanisms that are
            not counted `by_client`.
    """

    releases: int
    participations: np.ndarray

    def most(self) -> int:
        """The participations of the client that took part most often."""
        return int(self.participations.max(initial=0))


class Mechanism(Protocol):
    """A part of a run with differential privacy: a transform with `bounds_sensitivity`, or `trainer.private`.

    Attributes:
        unit: what neighbours differ by: a client, or a sample.
        by_client: whether `events` reads `Charged.participations`.
        noise_multiplier: standard deviation of the noise over the sensitivity; None until it is calibrated.
        secure_noise: whether a repeated round draws other noise.
        not_covered: what leaves clients besides and is not covered, a phrase each.
    """

    unit: Literal["client", "sample"]
    by_client: bool
    noise_multiplier: float | None
    secure_noise: bool
    not_covered: Sequence[str]

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """All that has been released, seen from one unit; several, of which the worst counts, if units differ.

        Args:
            setup: the parts of the run.
            charged: what has been released.
            noise_multiplier: the mechanism's own, or one that is tried.
        """

    def filled(self, setup: "Setup") -> Mapping[str, float]:
        """Settings of null other than the noise multiplier that follow from the run, by name."""

    def described(self) -> Mapping[str, Any]:
        """Its settings for `summary.json`: kind, bound, and so on."""


def mechanism_of(setup: "Setup") -> tuple[str, Mechanism] | None:
    """The run's mechanism, with the key of the configuration that it is at; None if it has none.

    Raises:
        ValueError: there are several.
    """
    transforms = setup.transforms.items()
    found: dict[str, Any] = {f"strategy.transforms.{name}": t for name, t in transforms if t.bounds_sensitivity}
    private = getattr(setup.trainer, "private", None)
    if private is not None:
        found["trainer.private"] = private
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)}: one of them at a time, epsilon is counted of one mechanism")
    return next(iter(found.items()), None)
