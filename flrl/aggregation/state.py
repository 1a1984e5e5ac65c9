"""The variables and random numbers of an aggregator, as the round loop hands them in and takes them out."""

from dataclasses import replace

import torch

from flrl.aggregation.base import Aggregator, Combined, Opened, Reducer, SealedReducer
from flrl.aggregation.drift import cosines
from flrl.aggregation.rows import RowsReducer
from flrl.layout import ParameterLayout
from flrl.seeding import SERVER, seed_for
from flrl.types import Broadcast, Context, ServerState, Tensors

_PREFIX = "aggregator/"
"""What the names of its variables in `ServerState.variables` begin with."""


def combine(
    aggregator: Aggregator,
    reducer: Reducer,
    state: ServerState,
    broadcast: Broadcast,
    layout: ParameterLayout,
    seed: int,
    root: Tensors | None = None,
) -> Combined:
    """The aggregate of a round, from the merged reducer; arguments as for `flrl.rounds`, `root` as for `Context`.

    Where the reducer has kept the updates, its numbers have their cosines with the aggregate.
    """
    generator = torch.Generator().manual_seed(seed_for(seed, broadcast.round, SERVER, "aggregator"))
    context = Context(broadcast.round, seed, layout, broadcast.cohort, broadcast.total_weight, generator, root)
    opened = reducer.opened() if isinstance(reducer, SealedReducer) else Opened(reducer)
    combined = aggregator.combine(opened.reducer, own_variables(state), context)
    numbers = {**combined.numbers, **opened.numbers}
    combined = replace(combined, numbers=numbers, down_bytes=combined.down_bytes + opened.down_bytes)
    if not isinstance(reducer, RowsReducer) or "update" not in combined.vectors:
        return combined
    return replace(combined, numbers={**combined.numbers, **cosines(reducer, combined.vectors["update"])})


def own_variables(state: ServerState) -> Tensors:
    """The aggregator's variables, by their own names."""
    found = state.variables.items()
    return {name.removeprefix(_PREFIX): tensor for name, tensor in found if name.startswith(_PREFIX)}


def named(variables: Tensors) -> Tensors:
    """Those variables as they are named in `ServerState.variables`."""
    return {f"{_PREFIX}{name}": tensor for name, tensor in variables.items()}
