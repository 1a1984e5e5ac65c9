"""The controller logs workers' warnings, each once over all workers, unless it has logged it itself."""

import logging
from typing import Any

import pytest

from flrl.backends import ProcessBackend
from flrl.backends.pool.worker_warnings import WarningCollector, WarningLog, own_warnings
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
        log.info("no warning")
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        log.warning(EVALUATES)
        super().test_step(batch, batch_idx)


@pytest.mark.slow
def test_a_warning_is_logged_once_over_all_workers(caplog: pytest.LogCaptureFixture) -> None:
    run(ProcessBackend(workers=2), Toy(module=Talkative, rounds=2))
    logged = [(record.name, record.getMessage()) for record in caplog.records if record.levelno == logging.WARNING]
    here, there = __name__, "flrl.backends.pool.worker_warnings"
    assert logged == [(here, MADE), (there, TRAINS), (there, EVALUATES)]  # its own module has been made here, too


def test_a_workers_texts_are_taken_once_and_errors_are_not_among_them() -> None:
    collector, logger = WarningCollector(), logging.getLogger("somebody")
    logger.addHandler(collector)
    logger.warning("a %s", "b")
    logger.warning("a b")
    logger.error("reported at the end of the run")
    assert collector.take() == ("a b",)
    logger.warning("a b")
    logger.warning("c")
    assert collector.take() == ("c",)
    logger.removeHandler(collector)


def test_what_the_controller_has_logged_is_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    log_warnings = WarningLog(own_warnings())
    log.warning("its %s", "own")
    log_warnings(("its own", "another"))
    log_warnings(("another",))
    assert [record.getMessage() for record in caplog.records] == ["its own", "another"]
    log_warnings = WarningLog(own_warnings())
    log_warnings(("its own",))
    assert caplog.records[-1].getMessage() == "its own"  # another run logs it too
