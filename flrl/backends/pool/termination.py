"""SIGTERM to a worker: it lets go of its work where nothing else waits for it in vain, and the controller is told.

A worker that ended at once might leave half a message, or others alone in a collective call. So the signal takes effect
only inside of `terminable` blocks, at once or in the next one.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM has asked this worker to end."""


class _State:
    """What this process's handler knows; a process has one."""

    asked = False
    open = False


def answer_sigterm() -> None:
    """Let SIGTERM wait for a `terminable` block, from now on; for the main thread of a worker."""
    owner = os.getpid()

    def ask(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a child that the user's code has forked
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        _State.asked = True
        if _State.open:
            _State.open = False
            raise Terminated

    signal.signal(signal.SIGTERM, ask)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A block that SIGTERM ends.

    Raises:
        Terminated: it has come, now or since the last such block.
    """
    with _opened(True):
        if _State.asked:
            raise Terminated
        yield


@contextlib.contextmanager
def unterminable() -> Iterator[None]:
    """A part of such a block that is gone through to its end: SIGTERM ends the block after it."""
    with _opened(False):
        yield
    if _State.open and _State.asked:
        raise Terminated


@contextlib.contextmanager
def _opened(open: bool) -> Iterator[None]:
    before, _State.open = _State.open, open
    try:
        yield
    finally:
        _State.open = before
