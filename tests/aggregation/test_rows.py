"""Rules on rows: what a rule of one's own is given."""

import pytest
import torch
from torch import Tensor

from flrl.aggregation import RowRule
from tests.aggregation.updates import add, reduced, update
from tests.toys import merged


class Nearest(RowRule):
    """The row that is nearest to the weighted mean; the first one of several."""

    def rule(self, rows: Tensor, weights: Tensor) -> Tensor:
        mean = weights @ rows / weights.sum()
        return rows[(rows - mean).norm(dim=1).argmin()]


ROWS = [update(5, 1.0, update=[0.0, 0.0]), update(2, 2.0, update=[3.0, 0.0]), update(9, 1.0, update=[2.0, 4.0])]


def test_rows_come_with_their_weights() -> None:
    """The mean is (2, 1): sqrt(5), sqrt(2) and 3 away."""
    vectors, weight = reduced(Nearest(), ROWS, {"update": 2}).result()
    assert (vectors["update"].tolist(), weight) == ([3.0, 0.0], 4.0)


def test_rows_come_in_the_order_of_client_ids_whoever_sent_them_first() -> None:
    seen: list[list[list[float]]] = []

    class Noting(RowRule):
        def rule(self, rows: Tensor, weights: Tensor) -> Tensor:
            seen.append([[*row, weight] for row, weight in zip(rows.tolist(), weights.tolist(), strict=True)])
            return rows[0]

    for parts in ([ROWS], [ROWS[:1], ROWS[1:]], [ROWS[2:], ROWS[:2]], [[], ROWS[::-1]]):
        vectors, _ = merged([reduced(Noting(), part, {"update": 2}) for part in parts])
        assert vectors["update"].tolist() == [3.0, 0.0]
    assert seen == [[[3.0, 0.0, 2.0], [0.0, 0.0, 1.0], [2.0, 4.0, 1.0]]] * 4


def test_a_parcel_has_the_rows_under_the_clients_ids() -> None:
    parcel = reduced(Nearest(), ROWS[:2], {"update": 2}).parcel()
    assert parcel.summand is None
    assert {name: row.tolist() for name, row in parcel.extras.items()} == {"5": [0.0, 0.0, 1.0], "2": [3.0, 0.0, 2.0]}


def test_a_second_update_of_a_client_is_refused() -> None:
    reducer = reduced(Nearest(), ROWS, {"update": 2})
    with pytest.raises(ValueError, match="client 2 has sent two updates in one round"):
        add(reducer, update(2, 1.0, update=torch.zeros(2).tolist()))
