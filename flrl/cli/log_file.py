"""The log file of a run: records are held back until the run's command is accepted."""

import logging


class LogFile(logging.FileHandler):
    """Appends records to a file once `begin` is called, so that a command that is refused changes no file.

    Args:
        filename: the file, in the run's folder.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)
        self._waiting: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or hold it back until `begin`."""
        if self._waiting is None:
            super().emit(record)
        else:
            self._waiting.append(record)

    def begin(self) -> None:
        """Write the records held back, and further ones at once."""
        waiting, self._waiting = self._waiting or [], None
        for record in waiting:
            super().emit(record)


def begin() -> None:
    """Call `begin` of all log files of this process."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.begin()
