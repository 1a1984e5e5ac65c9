"""Workers' warnings: each worker collects its own, the controller logs each text once for all workers."""

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)


def _is_warning(record: logging.LogRecord) -> bool:
    """Whether a record is a warning; errors are reported when the run ends."""
    return logging.WARNING <= record.levelno < logging.ERROR


class WarningCollector(logging.Handler):
    """Collects a worker's warnings until they are taken, each text once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._known: set[str] = set()
        self._new: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's text if it is a new warning."""
        text = record.getMessage()
        if _is_warning(record) and text not in self._known:
            self._known.add(text)
            self._new.append(text)

    def take(self) -> tuple[str, ...]:
        """The warnings since the last call."""
        taken = tuple(self._new)
        self._new.clear()
        return taken


class WarningLog:
    """Logs workers' warnings in the controller, each text once, unless the controller has logged it itself.

    Args:
        known: texts that have been logged already; may grow while this is in use.
    """

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def __call__(self, texts: Sequence[str]) -> None:
        """Log the texts that are new."""
        for text in texts:
            if text not in self._known:
                log.warning("%s", text)
                self._known.add(text)


def own_warnings() -> set[str]:
    """A set that the texts of this process's own warnings are added to, from now on and until the next call.

    A factory of log records adds them, so that the user's handlers and levels stay as they are.
    """
    global _texts, _previous_factory
    _texts = set()
    if logging.getLogRecordFactory() is not _record_factory:
        _previous_factory = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_record_factory)
    return _texts


_texts: set[str] = set()
_previous_factory: Any = logging.LogRecord


def _record_factory(*args: Any, **options: Any) -> logging.LogRecord:
    record: logging.LogRecord = _previous_factory(*args, **options)
    if _is_warning(record):
        _texts.add(record.getMessage())
    return record
