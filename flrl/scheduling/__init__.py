"""Schedules: when the server steps, and on whose updates; on the virtual clock of `flrl.devices`."""

from flrl.scheduling.asynchronous import Asynchronous
from flrl.scheduling.base import NOW, Part, Plan, Planning, Schedule, is_under_way, together
from flrl.scheduling.buffered import Buffered
from flrl.scheduling.deadline import Deadline
from flrl.scheduling.staleness import ConstantStaleness, Hinge, Polynomial, Staleness
from flrl.scheduling.synchronous import Synchronous
from flrl.scheduling.tiered import Tiered

__all__ = [
    "NOW",
    "Asynchronous",
    "Buffered",
    "ConstantStaleness",
    "Deadline",
    "Hinge",
    "Part",
    "Plan",
    "Planning",
    "Polynomial",
    "Schedule",
    "Staleness",
    "Synchronous",
    "Tiered",
    "is_under_way",
    "together",
]
