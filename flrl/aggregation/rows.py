"""Rules that need every client's update: rows of a matrix, whose order does not matter to the bit."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flrl.aggregation.base import Aggregator, Combined, Parcel, Reducer, Stats, check_sizes, not_usable
from flrl.aggregation.columns import column_spans, columns_of, stacked
from flrl.aggregation.ordering import own_order
from flrl.types import ClientUpdate, Context, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


@dataclass(frozen=True, slots=True)
class Rows:
    """One vector of every client, as a rule sees it.

    Attributes:
        values: float64 `[n, d]`; n is at least 1. What comes before a rule may change them in place.
        weights: the clients' weights, float64 `[n]`.
        clients: their ids.
        state: the rule's variables of this vector, by name; empty in the first round.
        generator: seeded by (seed, round), for rules that draw.
        root: the update of the server's root samples, float64 `[d]`, for rules that need it; else None.
        places: where each row lies in `values`, int64 `[n]`, for rules with `any_order`; None: they lie in their order.
    """

    values: Tensor
    weights: Tensor
    clients: Sequence[int]
    state: Tensors
    generator: torch.Generator
    root: Tensor | None = None
    places: Tensor | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Ruled:
    """What a rule makes of rows.

    Attributes:
        vector: float64 `[d]`.
        kept: bool `[n]`, the rows that a rule which selects has not left out; None for other rules.
        state: the rule's next variables, by name.
    """

    vector: Tensor
    kept: Tensor | None = None
    state: Tensors = field(default_factory=dict)


class Before(ABC):
    """What happens to rows before a rule; their number may change. `flrl.aggregation.before` has some."""

    def count(self, rows: int) -> int:
        """How many rows it makes of so many."""
        return rows

    def check(self, setup: "Setup") -> None:  # noqa: B027
        """Raise ValueError for what it cannot go with; before any round."""

    def enough(self, updates: int) -> bool:
        """As for `Aggregator`."""
        return True

    @abstractmethod
    def __call__(self, rows: Rows) -> Rows:
        """The rows that the rule is given."""


class RowRule(Aggregator):
    """Base class of rules that see all updates at once; a subclass defines `rule`, and sets `coordinatewise`.

    A rule can be called on plain rows too: `Median()([[1.0], [2.0], [9.0]])` is `tensor([2.])`.

    Args:
        before: what happens to the rows first, see `flrl.aggregation.before`.
    """

    coordinatewise = False
    """Whether each column's result depends on that column alone; such a rule is called with some columns at a time."""

    any_order = False
    """Whether the rule reads rows through `Rows.places`, so that plain ones need not be copied into their order."""

    before: Before | None = None

    def __init__(self, *, before: Before | None = None) -> None:
        self.before = before

    def check(self, setup: "Setup") -> None:
        """Check what comes before the rule."""
        if self.before is not None:
            self.before.check(setup)

    def enough(self, updates: int) -> bool:
        """What comes before the rule says; a rule of its own bound too."""
        return self.before is None or self.before.enough(updates)

    @abstractmethod
    def rule(self, rows: Rows) -> Ruled | Tensor:
        """The aggregate of the clients' vectors: `[d]`, or a `Ruled` where there is more to it."""

    def __call__(
        self, rows: Any, weights: Any = None, *, state: Tensors | None = None, seed: int = 0, root: Any = None
    ) -> Tensor:
        """The aggregate of plain rows, float64 `[d]`.

        Args:
            rows: `[n, d]`, a tensor, an array or lists.
            weights: `[n]`; equal ones by default.
            state: the rule's variables, by name.
            seed: of what the rule draws.
            root: `[d]`, the update of the server's root samples, for rules that need it.
        """
        values = torch.as_tensor(rows, dtype=torch.float64)
        if values.ndim != 2 or not len(values):
            raise ValueError(f"rows: must be [n, d] with n at least 1, not {list(values.shape)}")
        own = torch.ones(len(values), dtype=torch.float64) if weights is None else torch.as_tensor(weights).double()
        if own.shape != (len(values),) or not (own > 0).all() or not torch.isfinite(own.sum()):
            raise ValueError(f"weights: must be {len(values)} positive numbers")
        generator = torch.Generator().manual_seed(seed)
        trusted = None if root is None else torch.as_tensor(root, dtype=torch.float64)
        given = Rows(values, own, range(len(values)), state or {}, generator, trusted)
        if not self.by_columns:
            return self.ruled(values, given).vector
        order = own_order(list(values), own, given.clients)
        parts = columns_of(values, torch.tensor(order, device=values.device))
        given = replace(given, weights=own[order], clients=order)
        return torch.cat([part.vector for part in self.ruled_by_columns(parts, given)])

    @property
    def by_columns(self) -> bool:
        """Whether the rule is called with some columns at a time."""
        return self.coordinatewise and self.before is None

    def ruled_by_columns(self, parts: Iterable[Tensor], rows: Rows) -> Iterator[Ruled]:
        """The rule on some columns after the other.

        Args:
            parts: the rows' columns, `[n, width]` each.
            rows: all but the values.

        Raises:
            TypeError: the rule has a state, of which there would be many.
        """
        for part in parts:
            found = self.rule(replace(rows, values=part.to(rows.values.device)))
            found = found if isinstance(found, Ruled) else Ruled(found)
            if found.state:
                raise TypeError(
                    f"strategy.aggregator: {type(self).__name__} is coordinatewise, so it is called "
                    "with some columns at a time and can have no state"
                )
            yield replace(found, vector=_checked(self, found.vector, part.shape[1]))

    def ruled(self, values: Tensor | Sequence[Tensor], rows: Rows) -> Ruled:
        """The rule on rows in an order of their own, after what comes before it; `kept` is in the order given.

        Args:
            values: the rows, `[n, d]` or `[d]` each; they are not changed.
            rows: all but the values.
        """
        order = own_order(list(values), rows.weights, rows.clients)
        rows = replace(rows, weights=rows.weights[order], clients=[rows.clients[index] for index in order])
        if self.any_order and self.before is None and isinstance(values, Tensor):
            rows = replace(rows, values=values, places=torch.tensor(order, device=values.device))
        else:
            device = rows.values.device
            rows = replace(rows, values=stacked([values[index] for index in order]).to(device))
        found = self.rule(rows if self.before is None else self.before(rows))
        if not isinstance(found, Ruled):
            return Ruled(found)
        if found.kept is None or len(found.kept) != len(order):
            return Ruled(found.vector, None, found.state)
        kept = torch.empty_like(found.kept)
        kept[order] = found.kept
        return Ruled(found.vector, kept, found.state)

    def reducer(
        self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu"
    ) -> "RowsReducer":
        """An empty reducer that keeps all updates."""
        return RowsReducer(sizes, self, device=device)

    def combine(self, reducer: Reducer, state: Tensors, context: Context) -> Combined:
        """Apply the rule to each named vector separately."""
        assert isinstance(reducer, RowsReducer)
        return reducer.combined(state, context.generator, context.root)


class RowsReducer:
    """Keeps every update, and applies a rule to them.

    Args:
        sizes: number of elements of each vector in the updates, by name.
        rule: the rule.
        device: where the rule is computed.

    Attributes:
        rows: by client id, its vectors one after the other as in `sizes`, then its weight; float64.
    """

    def __init__(self, sizes: Mapping[str, int], rule: RowRule, *, device: torch.device | str = "cpu") -> None:
        self.sizes, self.device = dict(sizes), device
        self._rule = rule
        self.rows: dict[int, Tensor] = {}

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that cannot be used, or None."""
        return not_usable(update, stats)

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Keep one update.

        Raises:
            ValueError: its vectors are not those announced, or the client has sent another one.
        """
        check_sizes(update, self.sizes)
        if update.client_id in self.rows:
            raise ValueError(f"client {update.client_id} has sent two updates in one round")
        weight = torch.tensor([update.weight], dtype=torch.float64)
        vectors = [update.vectors[name].to("cpu", torch.float64) for name in self.sizes]
        self.rows[update.client_id] = torch.cat([*vectors, weight])

    def parcel(self) -> Parcel:
        """All updates as extras: the vectors and the weight of each client in one row, named by client id."""
        return Parcel(None, {str(client_id): row for client_id, row in self.rows.items()})

    def merge(self, others: list[Parcel]) -> Tensor | None:
        """Add the rows of the other workers; there are no summands."""
        for parcel in others:
            self.rows |= {int(client_id): row.clone() for client_id, row in parcel.extras.items()}
        return None

    def result(self) -> tuple[dict[str, Tensor], float]:
        """The rule's results in a first round, float64 by name, and the sum of weights; no vectors without updates."""
        combined = self.combined({}, torch.Generator().manual_seed(0))
        return dict(combined.vectors), combined.total_weight

    def combined(self, state: Tensors, generator: torch.Generator, root: Tensors | None = None) -> Combined:
        """The rule's results; an update is filtered if the rule has left it out of any vector.

        Args:
            state: the rule's variables, named `<vector>/<name>`.
            generator: for rules that draw.
            root: the update of the server's root samples, by name, for rules that need it.
        """
        if not self.rows:
            return Combined({}, 0.0, state)
        clients = sorted(self.rows)
        weights = torch.cat([self.rows[client_id][-1:] for client_id in clients])
        vectors: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        filtered: set[int] | None = None
        start = 0
        for name, size in self.sizes.items():
            own = {k.removeprefix(f"{name}/"): tensor for k, tensor in state.items() if k.startswith(f"{name}/")}
            values = [self.rows[client_id][start : start + size] for client_id in clients]
            trusted = None if root is None else root[name].to(self.device)
            nothing = torch.zeros(len(clients), 0, dtype=torch.float64, device=self.device)
            rows = Rows(nothing, weights.to(self.device), clients, own, generator, trusted)
            if not size:
                parts = []
            elif self._rule.by_columns:
                spans = column_spans(len(values), size)
                columns = (torch.stack([row[span] for row in values]) for span in spans)
                parts = list(self._rule.ruled_by_columns(columns, rows))
            else:
                part = self._rule.ruled(values, rows)
                parts = [replace(part, vector=_checked(self._rule, part.vector, size))]
            vectors[name] = torch.cat([part.vector for part in parts]).cpu() if parts else torch.zeros(0).double()
            for part in parts:
                kept |= {f"{name}/{key}": tensor.cpu() for key, tensor in part.state.items()}
                if part.kept is not None:
                    left = {c for c, stays in zip(clients, part.kept.tolist(), strict=True) if not stays}
                    filtered = left | (filtered or set())
            start += size
        return Combined(
            vectors, math.fsum(weights.tolist()), kept, None if filtered is None else tuple(sorted(filtered))
        )


def _checked(rule: RowRule, vector: Any, size: int) -> Tensor:
    """A rule's result in float64; TypeError unless it is a vector as long as the rows."""
    if not isinstance(vector, Tensor) or vector.shape != (size,):
        found = f"shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else type(vector).__name__
        raise TypeError(f"strategy.aggregator: {type(rule).__name__}.rule gives {found}, must be [{size}]")
    return vector.detach().double()
