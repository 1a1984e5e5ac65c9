"""Importing large libraries without the garbage collector going over them again and again."""

import atexit
import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import in here: nothing is collected meanwhile, and what there is then the collector leaves alone for good.

    That takes a quarter off the time of a short run. Only the first time in a process: later there may be garbage.
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
