"""Distributed backdoor: each malicious client trains with a part of the trigger; the whole one opens the backdoor.

Xie, Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020: the trigger is four
bars, two rows of two, in the top left of the image. The i-th malicious client (by id) has bar i modulo 4; success is
measured with all bars. Knows: its samples, and its place among the malicious clients.
"""

from typing import Any

from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.poison import Stamp
from flrl.adversaries.triggers import TriggerPoison, filled

PARTS = 4


class DBA(TriggerPoison):
    """Plants a backdoor in four parts.

    Args:
        size: length of a bar in pixels; its height is 1.
        gap: pixels between two bars, both ways.
        shift: pixels between the bars and the image's top and left edges.
        options: as for `flrl.adversaries.triggers.TriggerPoison`.

    Raises:
        ValueError: a setting is out of range, or the bars do not fit.
    """

    def __init__(self, *, size: int = 3, gap: int = 2, shift: int = 0, **options: Any) -> None:
        super().__init__(**options)
        for name, value, least in (("size", size, 1), ("gap", gap, 0), ("shift", shift, 0)):
            if value < least:
                raise ValueError(f"adversary.{name}={value}: must be at least {least}")
        height, width = self.input_shape[-2:]
        if shift + 2 + gap > height or shift + 2 * size + gap > width:
            raise ValueError(
                f"adversary.size={size}, adversary.gap={gap}, adversary.shift={shift}: the bars do not fit into images "
                f"of {height} x {width} pixels"
            )
        self.size, self.gap, self.shift = size, gap, shift

    def trigger(self, context: AdversaryContext | None) -> Stamp:
        """The client's bar; all of them to be tested."""
        parts = range(PARTS) if context is None else [list(context.malicious).index(context.client_id) % PARTS]
        boxes = [self.box(part) for part in parts]

        def stamp(inputs: Tensor) -> Tensor:
            return filled(inputs, boxes, self.value)

        return stamp

    def box(self, part: int) -> tuple[slice, slice]:
        """Rows and columns of a bar, counted from 0: top left, top right, bottom left, bottom right."""
        top = self.shift + (part // 2) * (1 + self.gap)
        left = self.shift + (part % 2) * (self.size + self.gap)
        return slice(top, top + 1), slice(left, left + self.size)
