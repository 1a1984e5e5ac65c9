"""When SIGTERM takes effect in a worker: never in the middle of a message."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from flrl.backends.pool.termination import Terminated, _State, answer_sigterm, terminable, unterminable


@pytest.fixture(autouse=True)
def answered() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    answer_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)
    _State.asked = _State.open = False


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def block(*steps: Callable[[], None]) -> list[int]:
    """Go through the steps in a block that SIGTERM ends; returns which of them were done."""
    done: list[int] = []

    def go() -> None:
        with terminable():
            for index, step in enumerate(steps):
                step()
                done.append(index)

    with pytest.raises(Terminated):
        go()
    assert not _State.open
    return done


def test_it_ends_a_block_at_once() -> None:
    assert block(print, ask, print) == [0]


def test_outside_it_waits_for_the_next_block() -> None:
    ask()
    assert block(print) == []


def test_a_part_that_must_be_whole_is_gone_through_to_its_end() -> None:
    whole = []

    def part() -> None:
        with unterminable():
            ask()
            whole.append("all of it")

    assert block(print, part, print) == [0]
    assert whole == ["all of it"]


def test_without_a_signal_nothing_happens() -> None:
    with terminable(), unterminable():
        pass
    with unterminable():
        ask()  # no block around it: the next one
    assert block(print) == []


def test_a_child_that_was_forked_ends_of_it() -> None:
    child = os.fork()
    if child == 0:
        ask()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert not _State.asked
