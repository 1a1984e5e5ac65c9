"""Importing large libraries without the garbage collector visiting their objects over and over."""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Disable the garbage collector inside the block, and exempt all objects that exist at its end for good.

    Imports in the block then take less time: a quarter of a short run. Only the first block in a process does this, as
    later there may be garbage.
    """
    if gc.get_freeze_count() or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()
