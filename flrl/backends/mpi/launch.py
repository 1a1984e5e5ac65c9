"""How an entry point runs under MPI.

Process 0 runs the entry point: Hydra, files, loggers. The others wait for its messages and serve until it ends; if it
fails, they end too. Imports nothing heavy, so that `--help` is as fast as without MPI.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from flrl.backends.mpi.world import DATA, DOWN, UP, Content, Pause, Prepare, World, launched, wait_for_message, world
from flrl.backends.pool.termination import answer_sigterm
from flrl.backends.pool.watch import die_with_parent
from flrl.cli.importing import uncollected
from flrl.errors import FlrlError
from flrl.portable import choose, inherit

if TYPE_CHECKING:
    from mpi4py import MPI

_END_WITHIN_S = 3.0
"""Seconds that the other processes have to end after an error; twenty times as long after success."""


def run_under_mpi(app: Callable[[], None]) -> None:
    """Run an entry point in this process, if it is alone or process 0 of an MPI job; else serve process 0.

    Exits with the entry point's code; with code 1 where the MPI library cannot be used.
    """
    try:
        here = world()
    except FlrlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if launched():  # launchers put a terminal of their own between us and the user's, which may be a file
        os.environ.setdefault("TTY_COMPATIBLE", "0")
    if here is None:
        app()
    elif here.comm.rank == 0:
        _lead(here.comm, app)
    else:
        _follow(here)


def prepare(backend: str, *, portable: bool = False) -> None:
    """Prepare this process and the others of an MPI job for importing torch; prints a line if those are not needed.

    Args:
        backend: the `_target_` of the backend's configuration.
        portable: its `portable`.

    Raises:
        ValueError: `portable` cannot hold in this process.
    """
    choose(portable)
    here = world()
    if here is None:
        return
    if backend.endswith(".MpiBackend"):
        _prepare_others(portable)
    else:
        idle = f"{here.comm.size - 1} of {here.comm.size} MPI processes"
        print(f"{idle} have nothing to do: backend=mpi would use them", file=sys.stderr)


@cache
def _prepare_others(portable: bool) -> None:
    """Send `Prepare`, once: at the next jobs of a sweep the others may still be busy with one that has failed."""
    here = world()
    assert here is not None
    for rank in range(1, here.comm.size):
        here.comm.send(Content(Prepare(portable)), rank, DOWN)


def _lead(comm: "MPI.Comm", app: Callable[[], None]) -> None:
    code: Any = 1
    try:
        app()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    code = code if isinstance(code, int) else int(code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    if not _dismiss(comm, _END_WITHIN_S if code else 20 * _END_WITHIN_S):
        comm.Abort(code or 1)
    sys.exit(code)


def _dismiss(comm: "MPI.Comm", seconds: float) -> bool:
    """Send the other processes the message to end; returns whether all have answered within `seconds`."""
    requests = [comm.isend(Content(None), rank, DOWN) for rank in range(1, comm.size)]
    left, until = set(range(1, comm.size)), time.monotonic() + seconds
    pause = Pause()
    while left and time.monotonic() < until:
        if not comm.iprobe(tag=UP):
            pause()
            continue
        from mpi4py import MPI

        status = MPI.Status()
        message = comm.recv(tag=UP, status=status)
        if message is None:
            left.discard(status.source)
        elif message[1].nbytes:  # its sender waits until the tensors that belong to it have been received
            requests.append(comm.Irecv(bytearray(message[1].nbytes), status.source, DATA))
    for request in requests:
        if not left:
            request.Wait()
    return not left


def _follow(here: World) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # process 0 answers it for all
    answer_sigterm()
    die_with_parent()
    try:
        content = wait_for_message(here.comm)
        if content.message is not None:
            if isinstance(content.message, Prepare):
                inherit(content.message.portable)
            with uncollected():
                from flrl.backends.mpi.rank import follow

            follow(here, content)
        here.comm.send(None, 0, UP)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        here.comm.Abort(1)
