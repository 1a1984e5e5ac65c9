"""Errors that end a run with one clear line. Bad settings are plain ValueErrors."""


class FlrlError(RuntimeError):
    """Something that a user can mend, or that the run's data brought about."""


class DamagedError(ValueError):
    """A file of a run is torn, or not what it should be."""


class TooFewUpdatesError(FlrlError):
    """Fewer clients than `strategy.min_clients` sent an update that could be used."""


class ClientError(FlrlError):
    """A client's training raised.

    Attributes:
        client_id: the client.
        traceback: where it raised, as text; the cause is chained besides if it was raised in this process.
    """

    def __init__(self, message: str, *, client_id: int | None = None, traceback: str = "") -> None:
        super().__init__(message)
        self.client_id = client_id
        self.traceback = traceback


class WorkerError(FlrlError):
    """A worker ended, does not answer, or raised outside of any client's training.

    Attributes:
        traceback: where it raised, as text.
    """

    def __init__(self, message: str, *, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
