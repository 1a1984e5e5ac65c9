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
"""Tags: messages from process 0, messages to it, tensors beside either."""
_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "PALS_SIZE")


@dataclass(frozen=True, slots=True)
class World:
    """Two processes or more.

    Attributes:
        comm: all processes.
        node: those of this machine.
        leader: the first process of this machine, by its number in `comm`.
    """

    comm: "MPI.Comm"
    node: "MPI.Comm"
    leader: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """Import what a run needs.

    Attributes:
        portable: the backend's setting, which has to be seen to before torch is imported.
    """

    portable: bool


@dataclass(frozen=True, slots=True)
class Content:
    """What process 0 sends another one.

    Attributes:
        message: what to do; None to end.
        heads: name, dtype and shape of the tensors for all that belong to it, and whether they are broadcast now;
            those that are not are still there from an earlier message.
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
    """Take their names from Open MPI's pieces of shared memory, once all processes of this machine have opened them.

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
    """The pieces of shared memory of Open MPI that this process has mapped: path and inode."""
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


def _announced() -> int:
    """How many processes the launcher has started, by its environment variables."""
    sizes = [os.environ[name] for name in _LAUNCHERS if name in os.environ]
    if "PMIX_RANK" in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:
        sizes.append(os.environ["SLURM_STEP_NUM_TASKS"])
    return int(sizes[0]) if sizes else 1


def wait_for_message(comm: "MPI.Comm") -> Content:
    """The next message of process 0, waited for without keeping a core busy."""
    wait_until_sent(comm)
    content: Content = comm.recv(source=0, tag=DOWN)
    return content


def wait_until_sent(comm: "MPI.Comm") -> None:
    """Wait until process 0 has sent a message, and leave it where it is."""
    pause = Pause()
    while not comm.iprobe(source=0, tag=DOWN):
        pause()


def launchers_stderr() -> int:
    """The standard error of the process that started this one, if it can be opened, else a copy of our own.

    Once a process has died, a launcher may drop what the others still say through it.
    """
    path = f"/proc/{os.getppid()}/fd/2"
    try:
        if os.readlink(path) != os.devnull:
            return os.open(path, os.O_WRONLY | os.O_APPEND)
    except OSError:
        pass
    return os.dup(2)


class Pause:
    """Sleeps a little longer each time, up to ten milliseconds: MPI itself waits by spinning."""

    def __init__(self) -> None:
        self._seconds = 2e-5
        self._total = 0.0

    def __call__(self) -> None:
        """Sleep."""
        time.sleep(self._seconds)
        self._total += self._seconds
        longest = 2e-4 if self._total < 0.1 else 1e-3 if self._total < 2 else 1e-2
        self._seconds = min(self._seconds * 1.5, longest)
