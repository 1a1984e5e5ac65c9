"""Rows taken some columns at a time, so that what is worked on fits the caches and no copy of all rows is made."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

_NUMBERS = 2**18
"""Numbers of all rows that are worked on at a time: two megabytes."""


def column_spans(count: int, size: int) -> Iterator[slice]:
    """The columns of `[count, size]` in parts of about two megabytes, at least one part."""
    width = max(64, _NUMBERS // max(1, count))
    for start in range(0, max(1, size), width):
        yield slice(start, min(start + width, size))


def columns_of(values: Tensor, places: Tensor | None = None) -> Iterator[Tensor]:
    """The columns of `[m, d]` in parts `[n, width]`: of all rows, or of those at `places` `[n]`, in that order."""
    for span in column_spans(*values.shape):
        yield values[:, span] if places is None else values[:, span].index_select(0, places)


def empty_rows(count: int, size: int, device: torch.device | str = "cpu") -> Tensor:
    """Uninitialised float64 `[count, size]`; NumPy asks for huge pages, which takes a quarter of torch's time."""
    if torch.device(device).type != "cpu":
        return torch.empty(count, size, dtype=torch.float64, device=device)
    return torch.from_numpy(np.empty((count, size)))


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Rows `[d]` of float64, one at least, as `[n, d]`."""
    return torch.stack(list(rows), out=empty_rows(len(rows), len(rows[0]), rows[0].device))


def sorted_columns(rows: Tensor) -> Tensor:
    """Each column of `[n, d]` in ascending order; a column's numbers lie side by side."""
    if rows.device.type != "cpu":
        return rows.sort(dim=0).values
    columns = rows.t().clone(memory_format=torch.contiguous_format)
    columns.numpy().sort(axis=1)  # seven times faster than torch's
    return columns.t()


def norms_from(rows: Tensor, centre: Tensor) -> Tensor:
    """The Euclidean distance of each row of `[n, d]` from `centre` `[d]`, `[n]`."""
    squares = rows.new_zeros(len(rows))
    for span in column_spans(*rows.shape):
        squares += (rows[:, span] - centre[span]).square_().sum(dim=1)
    return squares.sqrt_()


def mean_of_kept(values: Tensor, kept: Tensor, places: Tensor | None = None) -> Tensor:
    """The mean of those rows of `[n, d]`, or of those at `places`, for which `kept` `[n]` is true, `[d]`."""
    places = torch.arange(len(values), device=values.device) if places is None else places
    return torch.cat([part.mean(dim=0) for part in columns_of(values, places[kept])])


def weighted_sums(weights: Tensor, rows: Tensor) -> Tensor:
    """`weights @ rows` for `[m, n]` and `[n, d]`, `[m, d]`, into memory that is quick to get."""
    sums = empty_rows(len(weights), rows.shape[1], rows.device)
    for span in column_spans(*rows.shape):
        torch.mm(weights, rows[:, span], out=sums[:, span])
    return sums
