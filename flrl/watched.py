"""Sources that note which samples are asked for, to know what a client has really trained on."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flrl.adversaries.threat import Threat
from flrl.data import FederatedData
from flrl.data.sources import Source
from flrl.layout import ParameterLayout
from flrl.types import Broadcast, ClientTask

Asked = list[np.ndarray]


def watched(source: Source, asked: Asked) -> Source:
    """A copy of a source; the indices of all samples that are asked for are appended to `asked`.

    `unwatched` is the source itself, for what does not train.
    """
    other: Any = copy(source)
    batches = source.batches

    def noting(indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[Any]:
        asked.append(indices)
        yield from batches(indices, batch_size, reuse=reuse)

    other.batches, other.unwatched = noting, source
    found: Source = other
    return found


def watched_data(data: FederatedData, asked: Asked) -> FederatedData:
    """The same data, whose training samples are watched."""
    other = copy(data)
    other.splits = replace(data.splits, train=watched(data.splits.train, asked))
    return other


@dataclass(frozen=True)
class WatchedThreat(Threat):
    """A threat whose poisoned samples are watched.

    Attributes:
        poisoned: by client, the source that it trained on and what was asked of it.
    """

    poisoned: dict[int, tuple[Source, Asked]] = field(default_factory=dict)

    @classmethod
    def like(cls, threat: Threat) -> "WatchedThreat":
        """The same threat, watched."""
        return cls(threat.adversary, threat.clients, threat.seed, threat.probes, threat.public)

    def samples(
        self, data: FederatedData, task: ClientTask, broadcast: Broadcast, layout: ParameterLayout, most: int | None
    ) -> tuple[Source, np.ndarray]:
        """The samples that a client trains on; arguments as for `Threat.samples`."""
        source, indices = Threat.samples(self, data, task, broadcast, layout, most)
        if source is data.splits.train:
            return source, indices
        asked: Asked = []
        self.poisoned[task.client_id] = source, asked
        return watched(source, asked), indices
