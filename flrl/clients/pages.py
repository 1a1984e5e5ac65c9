"""Memory for tensors that live for rounds: areas of their own, as they would fragment the heap among short-lived ones.

Getting a page from the system takes longer than writing to it. So an area has room for several tensors of one size, in
huge pages where the system has them; and as each round's client memory takes the place of an earlier one's, a piece of
an area that nobody uses any more is given to the next of its size. An area goes back to the system once none of its
pieces is used, but for some that are kept.
"""

import contextlib
import mmap
import weakref
from collections import deque
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

LARGE = 2**16
"""Tensors of at least this many bytes get pieces of areas."""
AREA = 2**25
"""Largest size in bytes of an area of several pieces. The first of a size has one, each has as many as all before."""
KEPT = 2**26
"""Largest size in bytes of all areas that are kept although nobody uses them; others go back to the system."""
_ALIGNED = 64


@dataclass(eq=False, slots=True)
class _Area:
    """Pages with pieces of one size.

    Attributes:
        pages: of the system.
        size: bytes of a piece.
        count: number of pieces.
        free: where the pieces begin that nobody uses.
    """

    pages: mmap.mmap
    size: int
    count: int
    free: list[int]


_given: dict[int, int] = {}
_pieces: dict[int, int] = {}
"""How many there are of each size, used or not."""
_roomy: dict[int, list[_Area]] = {}
"""Areas of which some piece is not used, by the size of their pieces."""
_idle: list[_Area] = []
"""Those of which no piece is used."""
_gone: deque[tuple[_Area, int, int]] = deque()
"""Pieces that nobody uses any more, and that are not among the free ones yet: area, beginning and address."""
_lock = Lock()


def room(size: int) -> Tensor:
    """Uninitialised memory as uint8 `[size]`."""
    if size < LARGE:
        return torch.empty(size, dtype=torch.uint8)
    with _lock:
        _take_back()
        try:
            area = _with_room(size)
        except OSError:  # a process may have too many mappings
            return torch.empty(size, dtype=torch.uint8)
        start = area.free.pop()
        if area in _idle:
            _idle.remove(area)
        if not area.free:
            _roomy[size].remove(area)
    array = np.frombuffer(area.pages, np.uint8, size, start)
    tensor = torch.from_numpy(array)
    _given[tensor.data_ptr()] = size
    weakref.finalize(array, _left, area, start, tensor.data_ptr()).atexit = False
    return tensor


def has_own(tensor: Tensor) -> bool:
    """Whether a tensor is all of what `room` has returned."""
    return _given.get(tensor.data_ptr()) == tensor.nbytes


def _with_room(size: int) -> _Area:
    roomy = _roomy.setdefault(size, [])
    if not roomy:
        piece, before = -(-size // _ALIGNED) * _ALIGNED, _pieces.get(size, 0)
        count = max(1, min(before, AREA // piece))
        pages = mmap.mmap(-1, count * piece, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a system may have none
                pages.madvise(mmap.MADV_HUGEPAGE)
        roomy.append(_Area(pages, size, count, [place * piece for place in reversed(range(count))]))
        _pieces[size] = before + count
    return roomy[-1]


def _left(area: _Area, start: int, address: int) -> None:
    """A piece has gone: now, or once whoever is here has left, who may be this very thread."""
    _gone.append((area, start, address))
    if _lock.acquire(blocking=False):
        try:
            _take_back()
        finally:
            _lock.release()


def _take_back() -> None:
    while _gone:
        area, start, address = _gone.popleft()
        del _given[address]
        if not area.free:
            _roomy.setdefault(area.size, []).append(area)
        area.free.append(start)
        if len(area.free) == area.count:
            _idle.append(area)
    while sum(len(idle.pages) for idle in _idle) > KEPT:
        gone = _idle.pop(0)
        _roomy[gone.size].remove(gone)
        _pieces[gone.size] -= gone.count
