"""An order of rows that is theirs whoever sent them, so that sums over rows are the same to the bit."""

import zlib
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from flrl.kernels import vector_stats

_KEY_COLUMNS = 2**12
"""Columns by which rows are ordered, unless some are equal there."""


def own_order(rows: Sequence[Tensor], weights: Tensor, clients: Sequence[int]) -> list[int]:
    """An order of rows `[d]` by their contents and weights alone, so that sums are the same to the bit.

    Rows are ordered by the bits of their first numbers; those that are equal there by all their numbers and weights.
    """
    firsts = [vector_stats(row[:_KEY_COLUMNS]).bits for row in rows]
    alike = {bits for bits, number in Counter(firsts).items() if number > 1}
    keys = []
    for row, bits, weight, client_id in zip(rows, firsts, weights.tolist(), clients, strict=True):
        here = row.cpu().contiguous() if bits in alike else row[:0].cpu()
        keys.append((bits, vector_stats(here).bits, zlib.crc32(here.numpy().data), weight, client_id))
    return sorted(range(len(keys)), key=keys.__getitem__)
