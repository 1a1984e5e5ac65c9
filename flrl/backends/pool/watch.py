"""Regular checks while this process is busy training, and the start and end of child processes with their parent."""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from flrl.backends.pool.termination import answer_sigterm
from flrl.cli.importing import uncollected
from flrl.portable import inherit


class _Ended(BaseException):
    """Carries an error out of a client's training, past every `except Exception` on the way."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def watching(check: Callable[[], None], *, every_s: float) -> Iterator[None]:
    """Call `check` every so many seconds while the block runs; what it raises ends the block.

    Uses SIGALRM, so that it works in the middle of a long client. Outside of the main thread nothing is watched.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def look(signum: int, frame: FrameType | None) -> None:
        try:
            check()
        except Exception as error:
            raise _Ended(error) from None

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, every_s, every_s)
    try:
        yield
    except _Ended as ended:
        raise ended.error from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def die_with_parent(parent: int | None = None, *, every_s: float = 0.1) -> None:
    """End this process soon after its parent has ended, whatever it is doing.

    Args:
        parent: the parent's process id, where it is known for sure.
        every_s: seconds between two checks.
    """
    expected = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=watch, name="die_with_parent", daemon=True).start()


def begin(module: str, function: str, argument: bytes, line: Any, portable: bool) -> None:
    """Entry point of a spawned process: first it ends with its parent and answers SIGTERM, only then it imports.

    Args:
        module: name of the function's module.
        function: name of the function, called with the unpickled argument and the line.
        argument: pickled.
        line: passed on.
        portable: the backend's setting, which takes effect only before torch is imported.
    """
    # A spawned process would spawn its own children too; the workers of a DataLoader would import torch each time.
    multiprocessing.set_start_method(None, force=True)
    parent = multiprocessing.parent_process()
    die_with_parent(None if parent is None else parent.pid)
    answer_sigterm()
    inherit(portable)
    with uncollected():
        run, start = getattr(importlib.import_module(module), function), pickle.loads(argument)
    run(start, line)


@contextlib.contextmanager
def signals_ignored() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM inside the block; processes started in it ignore them for as long as they live."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
