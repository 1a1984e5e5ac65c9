"""Rules on rows: what a rule of one's own is given, and what it may keep."""

import pytest
import torch
from torch import Tensor

from flrl.aggregation import RowRule, Rows, Ruled
from tests.aggregation.updates import add, reduced, update
from tests.toys import merged


class Nearest(RowRule):
    """The row that is nearest to the weighted mean; the first one of several."""

    def rule(self, rows: Rows) -> Tensor:
        mean = rows.weights @ rows.values / rows.weights.sum()
        return rows.values[(rows.values - mean).norm(dim=1).argmin()]


ROWS = [update(5, 1.0, update=[0.0, 0.0]), update(2, 2.0, update=[3.0, 0.0]), update(9, 1.0, update=[2.0, 4.0])]


def test_rows_come_with_their_weights() -> None:
    """The mean is (2, 1): sqrt(5), sqrt(2) and 3 away."""
    vectors, weight = reduced(Nearest(), ROWS, {"update": 2}).result()
    assert (vectors["update"].tolist(), weight) == ([3.0, 0.0], 4.0)


def test_rows_come_in_one_order_whoever_sent_them_first() -> None:
    seen: list[list[list[float]]] = []

    class Noting(RowRule):
        def rule(self, rows: Rows) -> Tensor:
            numbers = zip(rows.clients, rows.values.tolist(), rows.weights.tolist(), strict=True)
            seen.append([[client_id, *row, weight] for client_id, row, weight in numbers])
            return rows.values[0]

    for parts in ([ROWS], [ROWS[:1], ROWS[1:]], [ROWS[2:], ROWS[:2]], [[], ROWS[::-1]]):
        merged([reduced(Noting(), part, {"update": 2}) for part in parts])
    assert sorted(seen[0]) == [[2, 3.0, 0.0, 2.0], [5, 0.0, 0.0, 1.0], [9, 2.0, 4.0, 1.0]]
    assert seen == [seen[0]] * 4


def test_state_goes_from_round_to_round_and_who_is_left_out_is_named() -> None:
    """A rule that counts its rounds, and leaves out the row that it has seen as many rounds ago as it counts."""

    class Counting(RowRule):
        def rule(self, rows: Rows) -> Ruled:
            count = rows.state.get("count", torch.zeros(1)) + 1
            kept = torch.tensor([client_id != 5 for client_id in rows.clients])
            return Ruled(rows.values[kept].sum(dim=0) * count, kept, {"count": count})

    reducer, rule = reduced(Counting(), ROWS, {"update": 2}), Counting()
    generator = torch.Generator()
    first = reducer.combined({}, generator)  # type: ignore[attr-defined]
    assert (first.vectors["update"].tolist(), first.filtered) == ([5.0, 4.0], (5,))
    second = reducer.combined(first.state, generator)  # type: ignore[attr-defined]
    assert second.vectors["update"].tolist() == [10.0, 8.0]
    assert {name: tensor.tolist() for name, tensor in second.state.items()} == {"update/count": [2.0]}
    assert rule([[1.0], [2.0]], state={"count": torch.tensor([4.0])}).tolist() == [15.0]


def test_a_parcel_has_the_rows_under_the_clients_ids() -> None:
    parcel = reduced(Nearest(), ROWS[:2], {"update": 2}).parcel()
    assert parcel.summand is None
    assert {name: row.tolist() for name, row in parcel.extras.items()} == {"5": [0.0, 0.0, 1.0], "2": [3.0, 0.0, 2.0]}


def test_a_second_update_of_a_client_is_refused() -> None:
    reducer = reduced(Nearest(), ROWS, {"update": 2})
    with pytest.raises(ValueError, match="client 2 has sent two updates in one round"):
        add(reducer, update(2, 1.0, update=torch.zeros(2).tolist()))
