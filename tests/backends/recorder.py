"""Runs flrl-train under MPI and writes down every message that any process sends. Started by test_dedicated_server.py.

mpiexec -n 3 python -m tests.backends.recorder FOLDER OVERRIDE...
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flrl.recipe
from flrl.backends.mpi import world
from flrl.train import main


class Recorder:
    """A communicator that notes what goes out: kind, destination, the message's type, its bytes."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.records: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._comm, name)
        if name not in ("send", "isend", "Send", "Isend", "Bcast", "Reduce"):
            return method

        def noted(*args: Any, **options: Any) -> Any:
            first = args[0]
            if name in ("send", "isend"):
                self.note(name, args[1], _type(first), pickle.dumps(first), _arrays(first))
            elif name == "Bcast":
                if self._comm.rank == 0:
                    self.note(name, None, "buffer", first.tobytes(), 0)
            elif name != "Reduce" or self._comm.rank != 0:
                self.note(name, args[1] if name != "Reduce" else 0, "buffer", first.tobytes(), 0)
            return method(*args, **options)

        return noted

    def note(self, kind: str, to: int | None, what: str, data: bytes, arrays: int) -> None:
        self.records.append({"kind": kind, "to": to, "what": what, "data": data, "arrays": arrays})


def _type(message: Any) -> str:
    inner = message[0] if isinstance(message, tuple) else getattr(message, "message", message)
    return inner if isinstance(inner, str) else type(inner).__name__


def _arrays(message: Any) -> int:
    """Tensors and arrays inside of a pickled message."""
    found = 0

    class Counting(pickle.Pickler):
        def reducer_override(self, thing: Any) -> Any:
            nonlocal found
            found += isinstance(thing, torch.Tensor | np.ndarray)
            return NotImplemented

    Counting(open("/dev/null", "wb")).dump(message)
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    here = world.world()
    assert here is not None
    recorder = Recorder(here.comm)
    object.__setattr__(here, "comm", recorder)
    held: dict[str, Any] = {}
    original = flrl.recipe.Recipe.worker

    def worker(self: Any, data: Any, **options: Any) -> Any:
        held.update(samples=len(data.splits.train), test=len(data.splits.test), clients={})
        for client in range(data.num_clients):
            try:
                held["clients"][client] = len(data.train_indices(client))
            except ValueError as error:
                held["clients"][client] = str(error)
        return original(self, data, **options)

    flrl.recipe.Recipe.worker = worker  # type: ignore[method-assign]
    sys.argv = ["flrl-train", *sys.argv[2:]]
    try:
        main()
    finally:
        path = folder / f"rank{recorder._comm.rank}.pickle"
        path.write_bytes(pickle.dumps({"records": recorder.records, "held": held}))
