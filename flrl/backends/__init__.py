"""Where clients train: in this process, in several, or under MPI.

A backend's module is imported when its class is first used, so that an entry point can import `mpi.launch` alone.
"""

from importlib import import_module
from typing import Any

_MODULES = {"MpiBackend": "mpi.backend", "ProcessBackend": "local.backend", "SerialBackend": "serial"}

__all__ = ["MpiBackend", "ProcessBackend", "SerialBackend"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
