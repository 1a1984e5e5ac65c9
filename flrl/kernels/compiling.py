"""When a loop is compiled, and how."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

_LITTLE_WORK = 2**21
"""Elements processed with torch's operations before loops are compiled: about half a second of work."""
_processed = 0


def pays(values: Tensor | np.ndarray) -> bool:
    """Whether a loop over values is to be compiled: they are in main memory, and much has been processed already."""
    global _processed
    _processed += values.numel() if isinstance(values, Tensor) else values.size
    return _processed > _LITTLE_WORK and (not isinstance(values, Tensor) or values.is_cpu)


def compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A loop over arrays as machine code: compiled in about a second, then read from a cache by later processes.

    Without `fastmath`, LLVM neither reorders nor fuses: these are the same IEEE operations as torch's.
    """
    import numba

    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to cache compiled code in
        return numba.njit(signature, nogil=True)(function)
