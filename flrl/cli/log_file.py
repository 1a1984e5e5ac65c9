"""The log file of a run: what is logged before the run has accepted its command is kept until then."""

import logging


class LogFile(logging.FileHandler):
    """Appends to a file, from `begin` on; a command that is refused changes no file.

    Args:
        filename: in the run's folder.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)
        self._waiting: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or keep it until the run begins."""
        if self._waiting is None:
            super().emit(record)
        else:
            self._waiting.append(record)

    def begin(self) -> None:
        """Write what was kept, and everything from now on at once."""
        waiting, self._waiting = self._waiting or [], None
        for record in waiting:
            super().emit(record)


def begin() -> None:
    """Let the log files of this process begin."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.begin()
