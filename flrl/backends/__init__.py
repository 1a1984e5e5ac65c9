"""Where clients train: in this process, in several, or under MPI."""

from flrl.backends.serial import SerialBackend
from flrl.backends.worker import ClientError, Worker

__all__ = ["ClientError", "SerialBackend", "Worker"]
