"""Where clients train: in this process, in several, or under MPI."""

from flrl.backends.serial import SerialBackend
from flrl.backends.worker import Worker

__all__ = ["SerialBackend", "Worker"]
