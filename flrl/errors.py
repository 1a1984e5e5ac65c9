"""Errors that end a run with one clear line. Bad settings are plain ValueErrors."""


class FlrlError(RuntimeError):
    """Something that a user can mend, or that the run's data brought about."""


class TooFewUpdatesError(FlrlError):
    """Fewer clients than `strategy.min_clients` sent an update that could be used."""


class ClientError(FlrlError):
    """A client's training raised; the cause is chained."""
