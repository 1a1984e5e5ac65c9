"""SIGTERM to a worker: it stops where no other process is left waiting for it, and reports its end to the controller.

A worker that ended at once might leave an incomplete message, or others waiting in a collective call. So the signal
takes effect only inside of `terminable` blocks: in the current one, or else at the start of the next.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(BaseException):
    """SIGTERM has asked this worker to end."""


class _State:
    """The state of this process's signal handler.

    Attributes:
        asked: SIGTERM has arrived.
        open: a `terminable` block is running.
    """

    asked = False
    open = False


def answer_sigterm() -> None:
    """Delay SIGTERM until a `terminable` block, from now on; call it in the main thread of a worker."""
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
    """A part of a `terminable` block that always runs to its end.

    Raises:
        Terminated: SIGTERM has arrived meanwhile; raised after the part.
    """
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
