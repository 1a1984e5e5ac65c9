"""Label flip: malicious clients train honestly on their own samples, whose classes are other ones.

`pairwise`: y becomes y + 1, the last class the first. `all`: y becomes C - 1 - y, as in Karimireddy, He, Jaggi,
"Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, arXiv 2006.09365. `targeted`: classes in
`source` become `target`, as in Tolpegin et al., "Data Poisoning Attacks Against Federated Learning Systems", ESORICS
2020, arXiv 2007.08432; without a target each such sample gets another class, drawn once by seed. Knows: its samples.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from flrl.adversaries.base import AdversaryContext, Probe
from flrl.adversaries.poison import DataPoison, Poison
from flrl.data.sources import Source
from flrl.seeding import generator_for


class LabelFlip(DataPoison):
    """Flips the classes of malicious clients' samples; `test/source_accuracy` is that on the source classes.

    Args:
        mode: "pairwise", "all" or "targeted".
        source: the class or classes that are flipped, for "targeted".
        target: the class that they become; null draws another one for each sample.
        num_classes: C; null in a yaml takes the dataset's.
        options: as for `flrl.adversaries.Adversary`.

    Raises:
        ValueError: a class is missing or out of range.
    """

    def __init__(
        self,
        *,
        mode: Literal["pairwise", "all", "targeted"] = "all",
        source: int | Sequence[int] | None = None,
        target: int | None = None,
        num_classes: int,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if mode not in ("pairwise", "all", "targeted"):
            raise ValueError(f"adversary.mode={mode!r}: must be 'pairwise', 'all' or 'targeted'")
        if num_classes < 2:
            raise ValueError(f"adversary.num_classes={num_classes}: must be at least 2")
        if (mode == "targeted") != (source is not None):
            raise ValueError(f"adversary.source={source}: the classes to be flipped belong to adversary.mode=targeted")
        if mode != "targeted" and target is not None:
            raise ValueError(f"adversary.target={target}: the class to flip to belongs to adversary.mode=targeted")
        sources = () if source is None else (source,) if isinstance(source, int) else tuple(source)
        for name, values in (("source", sources), ("target", () if target is None else (target,))):
            for value in values:
                check_class(name, value, num_classes)
        if mode == "targeted" and (not sources or target in sources):
            raise ValueError(f"adversary.source={source}: must name classes other than adversary.target={target}")
        self.mode, self.sources, self.target = mode, tuple(sorted(set(sources))), target
        self.num_classes = num_classes

    def poison(self, labels: np.ndarray | None, context: AdversaryContext) -> Poison:
        """The flipped classes."""
        if labels is None:
            raise ValueError("adversary: label flips need samples with a class, and the dataset has none")
        if self.mode == "pairwise":
            return Poison((labels + 1) % self.num_classes)
        if self.mode == "all":
            return Poison(self.num_classes - 1 - labels)
        chosen = np.isin(labels, self.sources)
        if self.target is not None:
            return Poison(np.where(chosen, self.target, labels))
        rng = generator_for(context.seed, 0, context.client_id, "adversary/labels")
        return Poison(
            np.where(chosen, (labels + rng.integers(1, self.num_classes, len(labels))) % self.num_classes, labels)
        )

    def probes(self, test: Source) -> Sequence[Probe]:
        """The test samples of the source classes, where these are not all classes."""
        if not self.sources or test.labels is None:
            return ()
        return (Probe("test/source_accuracy", test, np.flatnonzero(np.isin(test.labels, self.sources))),)


def check_class(name: str, value: int, num_classes: int) -> None:
    """Raise ValueError, naming the key, unless a value is a class."""
    if not 0 <= value < num_classes:
        raise ValueError(f"adversary.{name}={value}: there are only the classes 0 to {num_classes - 1}")
