"""The MPI world that this process was started in, if any. Imports nothing heavy."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from flrl.errors import FlrlError

if TYPE_CHECKING:
    from mpi4py import MPI

DOWN, UP, DATA = 1, 2, 3
"""MPI tags: messages from process 0, messages to process 0, tensors that belong to either."""
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PALS_SIZE")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of an MPI job, at least two.

    Attributes:
        comm: all processes.
        node: those of this machine.
        leader: rank in `comm` of the first process of this machine.
    """

    comm: "MPI.Comm"
    node: "MPI.Comm"
    leader: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """The message from process 0 to import what a run needs.

    Attributes:
        portable: the backend's setting, which takes effect only before torch is imported.
    """

    portable: bool


@dataclass(frozen=True, slots=True)
class Content:
    """A message of process 0 to another process, and the layout of the tensors that follow it.

    Attributes:
        message: what to do; None to end.
        heads: name, dtype and shape of each tensor that all processes get with it, and whether it is broadcast now;
            the process still has the others from an earlier message.
        own: the layout of the tensors for this process alone, if there are any.
        wait: whether process 0 waits for an answer before it sends the tensors.
    """

    message: Any
    heads: Sequence[tuple[str, Any, tuple[int, ...], bool]] = ()
    own: Any = None
    wait: bool = False


@cache
def world() -> World | None:
    """The processes that an MPI launcher has started together with this one; None if it is alone.

    Raises:
        FlrlError: the launcher and the MPI library do not belong together, or there is no library.
    """
    announced = _announced()
    if announced < 2:
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise FlrlError(
            f"mpi4py finds no MPI library ({error}): load your cluster's, or pip install 'flrl[mpi]'"
        ) from error
    if MPI.COMM_WORLD.size != announced:
        raise FlrlError(
            f"{announced} processes were started, but {MPI.Get_library_version().splitlines()[0]} sees "
            f"{MPI.COMM_WORLD.size}: use the mpiexec that belongs to it"
        )
    comm = MPI.COMM_WORLD.Dup()
    node = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
    _unname_segments(comm, node)
    return World(comm, node, node.bcast(comm.rank, root=0))


def _unname_segments(comm: "MPI.Comm", node: "MPI.Comm") -> None:
    """Unlink Open MPI's segments of shared memory, once all processes of this machine have opened them.

    Open MPI does so when it ends; processes that are killed together with their launcher would leave 16 MB each.
    """
    opened = _opened_segments()
    jobs = {path.rpartition(".")[0] for path in opened}
    if not all(node.allgather(len(opened) == node.size and len(jobs) == 1)):
        return  # another MPI, another transport, or another system
    for path, inode in opened.items():
        if path.endswith(f".{comm.rank}") and os.path.exists(path) and os.stat(path).st_ino == inode:
            os.unlink(path)


def _opened_segments() -> dict[str, int]:
    """Open MPI's segments of shared memory that this process has mapped: path to inode."""
    found = {}
    try:
        with open("/proc/self/maps") as file:
            for line in file:
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) == 6 and fields[5].startswith("/dev/shm/sm_segment."):
                    found[fields[5]] = int(fields[4])
    except OSError:
        return {}
    return found


def launched() -> bool:
    """Whether an MPI launcher has started this process, alone or with others."""
    return any(name in os.environ for name in _LAUNCHERS)


def _announced() -> int:
    """The number of processes that the launcher has started, from its environment variables; 1 without any."""
    sizes = [os.environ[name] for name in _LAUNCHERS if name in os.environ]
    if "PMIX_RANK" in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:
        sizes.append(os.environ["SLURM_STEP_NUM_TASKS"])
    return int(sizes[0]) if sizes else 1


def wait_for_message(comm: "MPI.Comm") -> Content:
    """Wait for the next message of process 0, without keeping a core busy, and receive it."""
    wait_until_sent(comm)
    content: Content = comm.recv(source=0, tag=DOWN)
    return content


def wait_until_sent(comm: "MPI.Comm") -> None:
    """Wait until process 0 has sent a message, without receiving it."""
    pause = Pause()
    while not comm.iprobe(source=0, tag=DOWN):
        pause()


def launchers_stderr() -> int:
    """A file descriptor of the parent process's standard error, if it can be opened, else a copy of our own.

    Once a process has died, a launcher may drop what the others still print through it.
    """
    path = f"/proc/{os.getppid()}/fd/2"
    try:
        if os.readlink(path) != os.devnull:
            return os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:
        pass
    return os.dup(2)


class Pause:
    """Sleeps a little longer at each call, up to ten milliseconds: MPI itself would wait by spinning."""

    def __init__(self) -> None:
        self._seconds = 2e-5
        self._total = 0.0

    def __call__(self) -> None:
        """Sleep."""
        time.sleep(self._seconds)
        self._total += self._seconds
        longest = 2e-4 if self._total < 0.1 else 1e-3 if self._total < 2 else 1e-2
        self._seconds = min(self._seconds * 1.5, longest)
