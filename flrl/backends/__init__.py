"""Where clients train: in this process, in several, or under MPI.

What a backend needs is imported when its class is asked for, so that an entry point can look at `launch` first.
"""

from importlib import import_module
from typing import Any

_HOMES = {"MpiBackend": "mpi.backend", "ProcessBackend": "local.backend", "SerialBackend": "serial"}

__all__ = ["MpiBackend", "ProcessBackend", "SerialBackend"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
