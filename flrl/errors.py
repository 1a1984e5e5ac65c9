"""Errors that end a run with one clear line. Invalid settings are plain ValueErrors."""


class FlrlError(RuntimeError):
    """An error that the user can fix, or that the run's data has caused."""


class DamagedError(ValueError):
    """A file of a run is incomplete, or does not have the expected content."""


class TooFewUpdatesError(FlrlError):
    """Fewer updates of a round than `strategy.min_clients` were accepted."""


class ClientError(FlrlError):
    """A client's training raised.

    Attributes:
        client_id: the client; None if several clients were trained at once.
        traceback: the formatted traceback; if the client was trained in this process, the cause is chained too.
    """

    def __init__(self, message: str, *, client_id: int | None = None, traceback: str = "") -> None:
        super().__init__(message)
        self.client_id = client_id
        self.traceback = traceback


class SecureAggregationError(FlrlError):
    """Secure aggregation has ended without a sum: fewer clients are left than its threshold."""


class RefusedMessageError(FlrlError):
    """A message of secure aggregation is not what its sender may send now: repeated, changed, of another round."""


class WorkerError(FlrlError):
    """A worker ended, does not answer, or raised outside of any client's training.

    Attributes:
        traceback: the formatted traceback; empty if nothing was raised.
    """

    def __init__(self, message: str, *, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback
