"""The coordinatewise median by hand."""

import torch

from flrl.aggregation import Median
from flrl.aggregation.columns import _NUMBERS, column_spans, sorted_columns
from tests.aggregation.updates import of_rows, reduced, update


def test_of_three_rows_the_middle_of_each_column() -> None:
    assert of_rows(Median(), [1.0, 9.0], [2.0, 0.0], [6.0, 5.0]) == [2.0, 5.0]


def test_of_four_rows_the_mean_of_the_two_in_the_middle() -> None:
    assert of_rows(Median(), [1.0, 9.0], [2.0, 0.0], [6.0, 5.0], [90.0, -7.0]) == [4.0, 2.5]


def test_no_row_of_three_moves_it_beyond_the_others() -> None:
    assert of_rows(Median(), [1.0], [1e300], [3.0]) == [3.0]
    assert of_rows(Median(), [1.0], [-1e300], [3.0]) == [1.0]


def test_columns_beyond_those_that_are_taken_at_once() -> None:
    size = 2 * (_NUMBERS // 5) + 3
    assert [span.stop for span in column_spans(5, size)] == [_NUMBERS // 5, 2 * (_NUMBERS // 5), size]
    rows = torch.randn(5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    updates = [update(client, 1.0, update=row.tolist()) for client, row in enumerate(rows)]
    found = reduced(Median(), updates, {"update": size}).result()[0]["update"]
    assert torch.equal(found, rows.median(dim=0).values)


def test_sorting_leaves_the_rows_as_they_are() -> None:
    """Though a single column lies in memory as it is to be sorted."""
    rows = torch.tensor([[3.0], [1.0], [2.0]], dtype=torch.float64)
    assert sorted_columns(rows).flatten().tolist() == [1.0, 2.0, 3.0]
    assert rows.flatten().tolist() == [3.0, 1.0, 2.0]
