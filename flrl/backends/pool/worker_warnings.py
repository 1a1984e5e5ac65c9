"""Workers' warnings: each worker collects its own, the controller logs each text once over all workers."""

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)


def _is_warning(record: logging.LogRecord) -> bool:
    """Whether a record is a warning; errors are reported when the run ends."""
    return logging.WARNING <= record.levelno < logging.ERROR


class Collected(logging.Handler):
    """A worker's warnings since they were last taken, each text once."""

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
        """The new ones."""
        taken = tuple(self._new)
        self._new.clear()
        return taken


class Repeated:
    """Logs workers' warnings in the controller, each text once, unless the controller has logged it itself.

    Args:
        known: texts that have been logged already.
    """

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def __call__(self, texts: Sequence[str]) -> None:
        """Log the texts that are new."""
        for text in texts:
            if text not in self._known:
                log.warning("%s", text)
                self._known.add(text)


def said_here() -> set[str]:
    """An empty set that the texts of this process's own warnings are added to, from now on and until the next call.

    They are noted where records are made, which leaves it to the user's configuration who hears them.
    """
    global _said, _make
    _said = set()
    if logging.getLogRecordFactory() is not _noted:
        _make = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_noted)
    return _said


_said: set[str] = set()
_make: Any = logging.LogRecord


def _noted(*args: Any, **options: Any) -> logging.LogRecord:
    record: logging.LogRecord = _make(*args, **options)
    if _is_warning(record):
        _said.add(record.getMessage())
    return record
