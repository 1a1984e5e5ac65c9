"""The exact mean, and beside it every client's update: for strategies that compare clients."""

from collections.abc import Mapping

import torch

from flrl.aggregation.base import Aggregator, Combined, Reducer
from flrl.aggregation.mean import summed
from flrl.aggregation.row_mean import RowMean
from flrl.aggregation.rows import RowsReducer
from flrl.types import Context, Tensors

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
        start = [*reducer.sizes].index("update")
        spans = [*reducer.sizes.values(), 1]
        rows = sorted(reducer.rows.items())
        updates = {f"{_PREFIX}{client_id}": torch.split(row, spans)[start] for client_id, row in rows}
        vectors_by_name, total_weight = summed(reducer, context.total_weight).result()
        return Combined({**vectors_by_name, **updates}, total_weight, state)


def updates_of(vectors: Tensors) -> dict[int, torch.Tensor]:
    """Each client's update in a round's vectors by `EveryUpdate`, float64 `[layout.size]`, by ascending client id."""
    found = {int(n.removeprefix(_PREFIX)): vector for n, vector in vectors.items() if n.startswith(_PREFIX)}
    return dict(sorted(found.items()))
