"""The exact mean, and beside it every client's update: for strategies that compare clients."""

from collections.abc import Mapping

import torch

from flrl.aggregation.base import Aggregator, Combined, Reducer, stats_of
from flrl.aggregation.mean import MeanReducer
from flrl.aggregation.row_mean import RowMean
from flrl.aggregation.rows import RowsReducer
from flrl.types import ClientUpdate, Context, Tensors

_PREFIX = "client/"


class EveryUpdate(Aggregator):
    """The weighted mean that `Mean` gives, to the bit; `updates_of` reads the updates from a round's vectors.

    The controller holds 8 bytes a number and client of the cohort, as with all rules on rows.
    """

    def reducer(
        self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu"
    ) -> RowsReducer:
        """An empty reducer that keeps all updates."""
        return RowsReducer(sizes, RowMean())

    def combine(self, reducer: Reducer, state: Tensors, context: Context) -> Combined:
        """The means of all vectors, and each client's `update`."""
        assert isinstance(reducer, RowsReducer)
        mean = MeanReducer(reducer.sizes, total_weight=context.total_weight)
        updates = {}
        for client_id in sorted(reducer.rows):
            *vectors, weight = torch.split(reducer.rows[client_id], [*reducer.sizes.values(), 1])
            update = ClientUpdate(client_id, float(weight), dict(zip(reducer.sizes, vectors, strict=True)), {}, 0)
            mean.add(update, stats_of(update))
            updates[f"{_PREFIX}{client_id}"] = update.vectors["update"]
        vectors_by_name, total_weight = mean.result()
        return Combined({**vectors_by_name, **updates}, total_weight, state)


def updates_of(vectors: Tensors) -> dict[int, torch.Tensor]:
    """Each client's update in a round's vectors by `EveryUpdate`, float64 `[layout.size]`, by ascending client id."""
    found = {int(n.removeprefix(_PREFIX)): vector for n, vector in vectors.items() if n.startswith(_PREFIX)}
    return dict(sorted(found.items()))
