"""How far clients' updates point from the aggregate."""

import math

import numpy as np
from torch import Tensor

from flrl.aggregation.rows import RowsReducer
from flrl.kernels import inner_product, vector_stats

_QUANTILES = (0.1, 0.5, 0.9)


def cosines(reducer: RowsReducer, aggregate: Tensor) -> dict[str, float]:
    """The cosines of clients' updates with the aggregated one: `updates/cosine_mean`, and `_q10`, `_q50`, `_q90`.

    Updates and aggregates of zeros have no direction and are left out; quantiles are interpolated linearly. The bits
    are the same on every backend.

    Args:
        reducer: holds all updates of the round.
        aggregate: of their `update` vectors, float64 `[layout.size]`.

    Returns:
        The numbers; none of them where no update has a cosine.
    """
    start = 0
    for name, size in reducer.sizes.items():
        if name == "update":
            break
        start += size
    found, length = [], vector_stats(aggregate).norm
    for _, row in sorted(reducer.rows.items()):
        update = row[start : start + len(aggregate)]
        both = vector_stats(update).norm * length
        if 0 < both < math.inf:
            found.append(max(-1.0, min(1.0, inner_product(update, aggregate) / both)))
    if not found:
        return {}
    quantiles = np.quantile(found, _QUANTILES).tolist()
    named = {f"updates/cosine_q{round(100 * q)}": value for q, value in zip(_QUANTILES, quantiles, strict=True)}
    return {"updates/cosine_mean": math.fsum(found) / len(found), **named}
