"""Small updates, and reducers that have taken some, for the tests of all rules."""

from collections.abc import Mapping, Sequence

import torch

from flrl.aggregation import Aggregator, Reducer, stats_of
from flrl.types import ClientUpdate


def update(client_id: int, weight: float, **vectors: Sequence[float]) -> ClientUpdate:
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in vectors.items()}
    return ClientUpdate(client_id, weight, tensors, {}, num_steps=1)


def add(reducer: Reducer, sent: ClientUpdate) -> None:
    reducer.add(sent, stats_of(sent))


def rejected(reducer: Reducer, sent: ClientUpdate) -> str | None:
    return reducer.rejection(sent, stats_of(sent))


def reduced(rule: Aggregator, updates: Sequence[ClientUpdate], sizes: Mapping[str, int]) -> Reducer:
    """A reducer that has taken the updates in this order."""
    reducer = rule.reducer(sizes, total_weight=64.0)
    for sent in updates:
        add(reducer, sent)
    return reducer


def of_rows(rule: Aggregator, *rows: Sequence[float]) -> list[float]:
    """What a rule makes of rows whose clients weigh 1, 2, 3, ..."""
    updates = [update(client, client + 1.0, update=row) for client, row in enumerate(rows)]
    return reduced(rule, updates, {"update": len(rows[0])}).result()[0]["update"].tolist()
