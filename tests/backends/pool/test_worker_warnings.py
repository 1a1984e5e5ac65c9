"""What workers warn of is said by the controller, once over all workers, and not again where it has said so itself."""

import logging
from typing import Any

import pytest

from flrl.backends import ProcessBackend
from flrl.backends.pool.worker_warnings import Collected, Repeated, said_here
from tests.backends.test_process import Toy, run
from tests.toys import Linear

log = logging.getLogger(__name__)
TRAINS, EVALUATES, MADE = "every worker trains", "every worker evaluates", "every worker is made"


class Talkative(Linear):
    """Warns when it is made, trained and evaluated."""

    def __init__(self) -> None:
        super().__init__()
        log.warning(MADE)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        log.warning("%s", TRAINS)
        log.info("nothing to say")
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        log.warning(EVALUATES)
        super().test_step(batch, batch_idx)


def test_it_is_said_once_over_all_workers(caplog: pytest.LogCaptureFixture) -> None:
    run(ProcessBackend(workers=2), Toy(module=Talkative, rounds=2))
    said = [(record.name, record.getMessage()) for record in caplog.records if record.levelno == logging.WARNING]
    here, there = __name__, "flrl.backends.pool.worker_warnings"
    assert said == [(here, MADE), (there, TRAINS), (there, EVALUATES)]  # its own module has been made here, too


def test_a_workers_texts_are_taken_once_and_errors_are_not_among_them() -> None:
    said, logger = Collected(), logging.getLogger("somebody")
    logger.addHandler(said)
    logger.warning("a %s", "b")
    logger.warning("a b")
    logger.error("told with the end of the run")
    assert said.take() == ("a b",)
    logger.warning("a b")
    logger.warning("c")
    assert said.take() == ("c",)
    logger.removeHandler(said)


def test_what_the_controller_has_said_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    say = Repeated(said_here())
    log.warning("its %s", "own")
    say(("its own", "another"))
    say(("another",))
    assert [record.getMessage() for record in caplog.records] == ["its own", "another"]
    say = Repeated(said_here())
    say(("its own",))
    assert caplog.records[-1].getMessage() == "its own"  # another run says it anew
