"""Memory for tensors that live for rounds: pages of their own, as they would fragment the heap among short-lived ones.

Getting a page from the system takes longer than writing to it. As each round's client memory takes the place of an
earlier one's, some pages that nobody uses any more are kept for the next.
"""

import mmap
import weakref
from threading import RLock

import numpy as np
import torch
from torch import Tensor

LARGE = 2**16
"""Tensors of at least this many bytes get pages of their own."""
KEPT = 2**26
"""Largest size in bytes of all pages that are kept although nobody uses them; others go back to the system."""
_given: dict[int, int] = {}
_kept: list[mmap.mmap] = []
_lock = RLock()  # a piece may go while this thread is here


def room(size: int) -> Tensor:
    """Uninitialised memory as uint8 `[size]`."""
    if size < LARGE:
        return torch.empty(size, dtype=torch.uint8)
    try:
        pages = _found(size) or mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # a process may have too many mappings
        return torch.empty(size, dtype=torch.uint8)
    array = np.frombuffer(pages, np.uint8)
    tensor = torch.from_numpy(array)
    _given[tensor.data_ptr()] = size
    weakref.finalize(array, _keep, pages, tensor.data_ptr()).atexit = False
    return tensor


def has_own(tensor: Tensor) -> bool:
    """Whether a tensor is all of what `room` has returned."""
    return _given.get(tensor.data_ptr()) == tensor.nbytes


def _found(size: int) -> mmap.mmap | None:
    with _lock:
        place = next((place for place in reversed(range(len(_kept))) if len(_kept[place]) == size), None)
        return None if place is None else _kept.pop(place)


def _keep(pages: mmap.mmap, address: int) -> None:
    with _lock:
        del _given[address]
        _kept.extend([pages] if len(pages) <= KEPT else [])
        while sum(map(len, _kept)) > KEPT:
            del _kept[0]
