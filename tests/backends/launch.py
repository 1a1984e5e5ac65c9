"""Starts runs that are going to be hurt: each a session of its own, found by a mark and ended whole, whatever happens.

    python -m tests.backends.launch      reads a request a line, answers each with a line

The launcher is a process without threads that has paid for the imports: a run on `serial` or `process` is a fork of it
that calls `flrl.train.main`, or a program of its own; one on MPI is mpiexec. `Launcher` is its other end.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))
LIMIT_S = 150.0
"""Longest that anything here is waited for; then all processes of the run are killed and the test fails."""
_MARK = "FLRL_TESTED_RUN"


@dataclass
class Started:
    """A run under way, or over.

    Attributes:
        launcher: its other end.
        process: the number of the process that was started, which leads a session of its own.
        mark: the value of an environment variable of all its processes.
        output_path: where they write their output.
        code: of that process, once it has ended; minus the signal if one ended it.
    """

    launcher: "Launcher"
    process: int
    mark: str
    output_path: Path
    code: int | None = None

    @property
    def output(self) -> str:
        """What its processes have printed so far."""
        return self.output_path.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """All processes of the run that are alive, wherever they belong now."""
        return [process for process in psutil.process_iter() if self._mine(process)]

    def ranks(self) -> list[psutil.Process]:
        """The MPI processes by rank, as far as they have been started."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                rank = process.environ().get("OMPI_COMM_WORLD_RANK")
                if rank is not None and "flrl.train" in process.cmdline():
                    found[int(rank)] = process
        return [found[rank] for rank in sorted(found)]

    def workers(self) -> list[int]:
        """The process numbers of the workers: MPI processes by rank, others as they were spawned."""
        spawned = [process for process in self.processes() if "spawn_main" in " ".join(process.cmdline())]
        return sorted(process.pid for process in spawned) or [process.pid for process in self.ranks()][1:]

    def segments(self) -> set[str]:
        """Open MPI's pieces of shared memory that its processes have mapped, by the names that they had."""
        maps = "".join(Path(f"/proc/{process.pid}/maps").read_text() for process in self.ranks())
        return set(re.findall(r"/dev/shm/sm_segment\S*", maps))

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait for something to become true; returns the time at which it was."""
        end = time.time() + LIMIT_S
        while not condition():
            if time.time() > end:
                self.kill()
                raise AssertionError(f"{what} took longer than {LIMIT_S:g} s:\n{self.output}")
            time.sleep(0.02)
        return time.time()

    def wait(self) -> float:
        """Wait until no process of it is left; returns the time."""
        return self.until(lambda: self.ended and not self.processes(), "the run's end")

    @property
    def ended(self) -> bool:
        """Whether the process that was started has ended; the others may still be there."""
        if self.code is None:
            self.code = self.launcher.ask(poll=self.process)
        return self.code is not None

    def kill(self) -> None:
        """End all of it at once."""
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.ended  # noqa: B018  (reaps it)

    def _mine(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return os.getsid(process.pid) == self.process or process.environ().get(_MARK) == self.mark
        except (psutil.Error, OSError):
            return False


class Launcher:
    """Starts runs."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.backends.launch"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.ask()  # answered once it has paid

    def ask(self, **request: Any) -> Any:
        """A request, and its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    @contextlib.contextmanager
    def start(self, *arguments: str, output: Path, mpi: int = 0, forked: bool = True) -> Iterator[Started]:
        """A run of `flrl-train` with the given arguments; whatever is left of it at the end of the block is killed.

        Args:
            arguments: overrides and options.
            output: a file for its output.
            mpi: MPI processes to start it on; 0: no mpiexec.
            forked: whether it may be a fork of the launcher, unless it is on MPI.
        """
        mark = uuid4().hex
        process = self.ask(arguments=arguments, output=str(output), mpi=mpi, mark=mark, forked=forked)
        run = Started(self, process, mark, output)
        try:
            yield run
        finally:
            run.kill()

    def run(self, *arguments: str, output: Path, mpi: int = 0) -> Started:
        """The same from start to end."""
        with self.start(*arguments, output=output, mpi=mpi) as run:
            run.wait()
        return run

    def close(self) -> None:
        """End the launcher itself."""
        self._server.communicate(timeout=LIMIT_S)


# The launcher itself.


def serve() -> Sequence[str] | None:
    """Answer requests until there are no more; returns, in a fork, the arguments of the run that it is to be."""
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None = None
        if "poll" in request:
            found, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
        elif request:
            answer = os.fork()
            if answer == 0:
                return become(**request)
        print(json.dumps(answer), flush=True)
    return None


def become(arguments: list[str], output: str, mpi: int, mark: str, forked: bool) -> Sequence[str]:
    """Make this process the leader of a session of its own, as a shell would start it; into another program, if so."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    with open(output, "ab") as file, open(os.devnull, "rb") as nothing:
        for descriptor, to in enumerate((nothing, file, file)):
            os.dup2(to.fileno(), descriptor)
    os.environ[_MARK] = mark
    own = [sys.executable, "-m", "flrl.train", *arguments]
    if mpi:
        os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl": "self,sm"}
        options = ("--oversubscribe", "--timeout", str(int(LIMIT_S)), "-n", str(mpi))
        os.execv(MPIEXEC, [MPIEXEC, *options, *own])
    if not forked:
        os.execv(sys.executable, own)
    return arguments


if __name__ == "__main__":
    import torch

    from flrl.train import main

    torch.set_num_threads(1)
    to_be = serve()
    if to_be is not None:
        sys.argv = ["flrl-train", *to_be]
        main()
