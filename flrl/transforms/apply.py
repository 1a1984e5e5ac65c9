"""Applies a strategy's transforms to updates, each with its own memory, state and random numbers."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from flrl.aggregation.base import Reducer
from flrl.encryption import KeyHolder
from flrl.layout import ParameterLayout
from flrl.seeding import SERVER, seed_for, seeded_for_client
from flrl.transforms.base import Transform
from flrl.transforms.encrypted_sum import as_tensor
from flrl.types import Aggregate, Broadcast, ClientUpdate, Context, Known, ServerState, Tensors

Transforms = Mapping[str, Transform]


def on_client(
    transforms: Transforms,
    update: ClientUpdate,
    memory: Tensors,
    broadcast: Broadcast,
    layout: ParameterLayout,
    seed: int,
    measured: Mapping[str, Tensors] | None = None,
) -> ClientUpdate:
    """A client's update after all transforms in order, with their part of its memory and metrics.

    Args:
        transforms: the transforms by name.
        update: the strategy's update.
        memory: the client's memory before the round.
        broadcast: what the server sent.
        layout: the layout of its vectors.
        seed: the run's seed.
        measured: what each transform has measured at the client, by its name.
    """
    kept, metrics, known = dict(update.memory), dict(update.metrics), dict[str, Known]()
    alone = broadcast if bounded(transforms) is None else _alone(broadcast, update.client_id)
    for name, transform in transforms.items():
        told = broadcast if transform.hides_updates else alone  # masks need the others, and come out of the sum
        context = _context(name, update.client_id, told, layout, seed, (measured or {}).get(name, {}))
        with _seeded(transform, name, update.client_id, broadcast, seed):
            result = transform.client(update, _own(memory, name), context)
        update, own, numbers = _three(result, name, "client")
        known = dict(update.known) if _is_flrls(transform) else {}  # what others send may have changed since
        kept |= {_key(name, key): tensor for key, tensor in own.items()}
        metrics |= {_key(name, key): value for key, value in {**numbers, "clients": 1.0}.items()}
    return replace(update, memory=kept, metrics=metrics, known=known)


def reducer_of(
    transforms: Transforms, inner: Reducer, broadcast: Broadcast, layout: ParameterLayout, seed: int
) -> Reducer:
    """What reduces a round's updates on a worker: the aggregator's own reducer, or what a transform has in its place.

    Args:
        transforms: the transforms by name.
        inner: the aggregator's, empty.
        broadcast: what the server sent.
        layout: the layout of its vectors.
        seed: the run's seed.
    """
    for name, transform in transforms.items():
        inner = transform.reducer(inner, _context(name, SERVER, broadcast, layout, seed))
    return inner


def on_broadcast(
    transforms: Transforms, broadcast: Broadcast, variables: Tensors, layout: ParameterLayout, seed: int
) -> Broadcast:
    """What is sent to clients after all transforms in order; its `kept` has their variables for the next state.

    Args:
        transforms: the transforms by name.
        broadcast: what the strategy sends.
        variables: the variables of the server's state before the round.
        layout: the layout of the model.
        seed: what random numbers follow from.
    """
    kept: dict[str, torch.Tensor] = {}
    for name, transform in transforms.items():
        if type(transform).broadcast is not Transform.broadcast:
            context = _context(f"{name}/broadcast", SERVER, broadcast, layout, seed)
            broadcast, own = transform.broadcast(broadcast, _own(variables, name), context)
            kept |= {_key(name, key): tensor for key, tensor in own.items()}
    return replace(broadcast, kept=kept) if kept else broadcast


def for_client(
    transforms: Transforms, broadcast: Broadcast, client_id: int, layout: ParameterLayout, seed: int
) -> Broadcast:
    """What one client's strategy gets of what is sent to all, under a bound without the cohort; as for `on_client`."""
    broadcast = without_sent(broadcast)
    if bounded(transforms) is not None:
        broadcast = _alone(broadcast, client_id)
    for name, transform in transforms.items():
        if type(transform).received is not Transform.received:
            context = _context(f"{name}/received", client_id, broadcast, layout, seed)
            broadcast = replace(broadcast, vector=transform.received(broadcast.vector, client_id, context))
    return broadcast


def on_server(
    transforms: Transforms,
    vectors: Tensors,
    variables: Tensors,
    broadcast: Broadcast,
    layout: ParameterLayout,
    seed: int,
    *,
    received: float = 0.0,
    expected: float = 0.0,
) -> tuple[Tensors, dict[str, torch.Tensor], dict[str, float]]:
    """The aggregate after all transforms in reverse order.

    Args:
        transforms: the transforms by name.
        vectors: the aggregated vectors, float64 by name.
        variables: the variables of the server's state before the round.
        broadcast: what the server sent to the clients.
        layout: the layout of the vectors.
        seed: the run's seed.
        received: as in `Context`.
        expected: likewise.

    Returns:
        The vectors, the transforms' variables for the next state, and numbers to report.
    """
    kept: dict[str, torch.Tensor] = {}
    metrics: dict[str, float] = {}
    for name, transform in reversed(list(transforms.items())):
        context = _context(name, SERVER, broadcast, layout, seed)
        context = replace(context, received=received, expected=expected)
        vectors, own, numbers = _three(transform.server(vectors, _own(variables, name), context), name, "server")
        kept |= {_key(name, key): tensor for key, tensor in own.items()}
        metrics |= {_key(name, key): value for key, value in numbers.items()}
        if transform.bounds_sensitivity:  # those that follow its noise are not told how many have sent
            received = expected
    return vectors, kept, metrics


def key_holders(transforms: Transforms, addends: int) -> tuple[dict[str, KeyHolder], dict[str, torch.Tensor]]:
    """A round's key holders by transform, and what they publish, as variables of a broadcast.

    Args:
        transforms: the transforms by name.
        addends: the largest number of updates in the round.
    """
    made = {name: transform.key_holder(addends) for name, transform in transforms.items()}
    holders = {name: holder for name, holder in made.items() if holder is not None}
    public: dict[str, torch.Tensor] = {}
    public |= {_key(name, "key"): as_tensor(holder.public) for name, holder in holders.items()}
    for name, transform in transforms.items():
        if transform.needs_addends:
            public[_key(name, "addends")] = torch.tensor(addends)
    return holders, public


def sent_with(transforms: Transforms, broadcast: Broadcast, variables: Tensors) -> Broadcast:
    """A strategy's broadcast with what transforms send to clients, from the variables of the server's state."""
    more = {
        _key(name, key): tensor
        for name, transform in transforms.items()
        for key, tensor in transform.sends(_own(variables, name)).items()
    }
    return replace(broadcast, variables={**broadcast.variables, **more}) if more else broadcast


def without_sent(broadcast: Broadcast) -> Broadcast:
    """A broadcast as the strategy has made it."""
    own = {name: tensor for name, tensor in broadcast.variables.items() if not is_transforms(name)}
    return broadcast if len(own) == len(broadcast.variables) else replace(broadcast, variables=own)


def sizes_after(transforms: Transforms, sizes: Mapping[str, int]) -> dict[str, int]:
    """Number of elements of each vector of an update after all transforms."""
    for transform in transforms.values():
        sizes = transform.vector_sizes(sizes)
    return dict(sizes)


def bounded(transforms: Transforms) -> Transform | None:
    """The transform that bounds what a client contributes; None if there is none."""
    return next((transform for transform in transforms.values() if transform.bounds_sensitivity), None)


def as_seen(transforms: Transforms, aggregate: Aggregate, expected: float, num_clients: int) -> Aggregate:
    """The aggregate as the strategy is given it: under a bound without what depends on single clients."""
    if bounded(transforms) is None:
        return aggregate
    return replace(aggregate, total_weight=expected, reports=(), share=expected / num_clients)


def unseen(state: ServerState, transforms: Transforms) -> ServerState:
    """The state as the strategy's server half is given it: under a bound without what clients remember."""
    if bounded(transforms) is None:
        return state
    return ServerState(state.round, state.vector, state.optimizer, state.variables)


def without_negative_variances(transforms: Transforms, vector: torch.Tensor, layout: ParameterLayout) -> torch.Tensor:
    """A model `[layout.size]` with BatchNorm's running variances of below 0, which noise may make of them, at 0.

    What is done to a noisy result says no more of clients than it does. Without a bound it is the model itself.
    """
    if bounded(transforms) is None:
        return vector
    variances = [e.slice for e in layout.entries if e.kind == "buffer" and e.name.rpartition(".")[2] == "running_var"]
    found = vector.clone() if variances else vector
    for part in variances:
        found[part].clamp_(min=0)
    return found


def _alone(broadcast: Broadcast, client_id: int) -> Broadcast:
    """What was sent to a client, without who else takes part."""
    return replace(broadcast, cohort=(client_id,), total_weight=1.0)


def _three(result: Any, name: str, method: str) -> Any:
    """What a transform's method returned; TypeError unless it is what was transformed, tensors to keep, and numbers."""
    whole = isinstance(result, tuple) and len(result) == 3
    if not whole or not all(isinstance(part, Mapping) for part in result[1:]) or result[0] is None:
        first = "update" if method == "client" else "vectors"
        raise TypeError(
            f"strategy.transforms.{name}: {method} must return three things: the {first}, tensors to be remembered by "
            f"name, and numbers to report by name; it returns {type(result).__name__}"
        )
    for key, value in result[1].items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"strategy.transforms.{name}: {method} has {type(value).__name__} remembered as {key!r}")
    return result


def is_transforms(name: str) -> bool:
    """Whether a name in client memory or among a state's variables belongs to a transform."""
    return name.startswith("transforms/")


def checked(transforms: Transforms | Sequence[Transform] | None) -> dict[str, Transform]:
    """A strategy's transforms by name, after checks.

    Raises:
        ValueError: they are no mapping of names to transforms, or a name is empty or has a slash.
    """
    found = transforms or {}
    if not isinstance(found, Mapping):
        raise ValueError(
            "strategy.transforms: must be a mapping of names to transforms, as in strategy/transforms=top_k"
        )
    for name, transform in found.items():
        if not isinstance(transform, Transform):
            raise ValueError(f"strategy.transforms.{name}: {type(transform).__name__} is no flrl.transforms.Transform")
        if not name or "/" in name:
            raise ValueError(f"strategy.transforms: the name {name!r} must not be empty or have a slash")
    return dict(found)


def _is_flrls(transform: Transform) -> bool:
    return type(transform).__module__.startswith("flrl.")


def _seeded(
    transform: Transform, name: str, client_id: int, broadcast: Broadcast, seed: int
) -> contextlib.AbstractContextManager[None]:
    """Seeds the global generators, for code that draws from them; flrl's own draws from those of its contexts."""
    if _is_flrls(transform):
        return contextlib.nullcontext()
    drawn = seed_for(seed, broadcast.round, client_id, f"transforms/{name}/global")
    return seeded_for_client(drawn, broadcast.vector.device)


def _context(
    name: str, client_id: int, broadcast: Broadcast, layout: ParameterLayout, seed: int, measured: Tensors | None = None
) -> Context:
    generator = torch.Generator().manual_seed(seed_for(seed, broadcast.round, client_id, f"transforms/{name}"))
    sent = _own(broadcast.variables, name)
    return Context(
        broadcast.round,
        seed,
        layout,
        broadcast.cohort,
        broadcast.total_weight,
        generator,
        sent=sent,
        measured=measured or {},
    )


def _own(tensors: Tensors, name: str) -> Tensors:
    prefix = _key(name, "")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _key(name: str, key: str) -> str:
    return f"transforms/{name}/{key}"
