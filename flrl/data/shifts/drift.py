"""Temporal drift: another shift, of which a growing or alternating share of each client's samples has come by a round.

The patterns are those of Gama et al., "A Survey on Concept Drift Adaptation", ACM Computing Surveys 2014.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from torch import Tensor

from flrl.data.shifts.base import Shift


class Drift(Shift):
    """A shift over time: which samples are shifted first is drawn once; in a round, a share of them is.

    Evaluation on held-out samples after a round is on what they are in it; the central test set does not drift.

    Args:
        shift: what samples become.
        kind: sudden: all are shifted from round `start` on; gradual: from then on the share grows evenly, and is 1
            after `length` rounds; recurring: all are for `length` rounds, none for the next `length`, and so on.
        start: the first round with shifted samples.
        length: number of rounds, see `kind`.

    Raises:
        ValueError: `kind` is none of these, `start` or `length` is below 1, or the shift drifts itself.
    """

    follows_rounds = True

    def __init__(
        self, *, shift: Shift, kind: Literal["sudden", "gradual", "recurring"], start: int = 1, length: int = 1
    ) -> None:
        if kind not in ("sudden", "gradual", "recurring"):
            raise ValueError(f"partition.shift.kind={kind}: must be sudden, gradual or recurring")
        for name, value in (("start", start), ("length", length)):
            if value < 1:
                raise ValueError(f"partition.shift.{name}={value}: must be at least 1")
        if shift.follows_rounds:
            raise ValueError(f"partition.shift.shift: {shift.name} follows the rounds already")
        self.shift = shift
        self.kind = kind
        self.start = start
        self.length = length

    @property
    def name(self) -> str:
        """The name that error messages call it by."""
        return f"Drift of {self.shift.name}"

    def share(self, round: int) -> float:
        """The share of each client's samples that is shifted in a round.

        Example:
            >>> from flrl.data.shifts import LabelPermutation
            >>> drift = Drift(shift=LabelPermutation(), kind="gradual", start=3, length=4)
            >>> [drift.share(round) for round in range(2, 8)]
            [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
        """
        since = round - self.start
        if since < 0:
            return 0.0
        if self.kind == "gradual":
            return min(1.0, (since + 1) / self.length)
        return 1.0 if self.kind == "sudden" else float(since // self.length % 2 == 0)

    def labels(self, labels: np.ndarray | None, owners: np.ndarray, num_clients: int, seed: int) -> np.ndarray | None:
        """The labels of shifted samples."""
        return self.shift.labels(labels, owners, num_clients, seed)

    def amounts(self, num_clients: int, seed: int) -> Tensor | None:
        """The amounts of the shift."""
        return self.shift.amounts(num_clients, seed)

    def inputs(self, inputs: Tensor, amounts: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
        """The inputs of shifted samples."""
        return self.shift.inputs(inputs, amounts, generators)
