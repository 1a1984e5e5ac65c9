"""Messages and tensors over MPI: `Hub` in process 0, `Link` in the others.

A process that waits polls with short sleeps: MPI's own waiting keeps a core busy and can neither be interrupted nor
cancelled. Collective calls are made only when all processes have reported that they are ready.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.backends.mpi.world import (
    DATA,
    DOWN,
    UP,
    Content,
    Pause,
    World,
    launchers_stderr,
    wait_for_message,
    wait_until_sent,
)
from flrl.backends.pool.job import Received, WorkerLostError
from flrl.backends.pool.messages import Ready, Specs, Started
from flrl.backends.pool.shared_memory import Segment
from flrl.backends.pool.worker_loop import Tensors
from flrl.types import ClientReport, ClientTask

_HERE, _REDUCE, _OVER = "here", "reduce", "over"
_UNFINISHED: "list[MpiHub]" = []
"""The line of a failed run whose processes were still busy, for the next run of a sweep to end."""
LOOK_EVERY_S = 0.05
"""Seconds between two checks that a process is still alive."""


class MpiHub:
    """The lines of process 0 to the others; see `Hub`.

    Args:
        here: the processes of the job; None without mpiexec.
        timeout_s: longest time in seconds until all processes are ready for tensors; None sets no limit.

    Attributes:
        unanswered: ranks that have not answered the latest message to them.
    """

    def __init__(self, here: World | None, timeout_s: float | None) -> None:
        self.others: Sequence[int] = range(1, 1 if here is None else here.comm.size)
        self._timeout_s = timeout_s
        self.unanswered = {*self.others}
        self._known: dict[str, tuple[Tensor, int]] = {}
        self._backlog: list[Received] = []
        self._processes = {0: Ready(os.getpid(), socket.gethostname())}
        self._sent: list[Any] = []
        self._looked = 0.0
        self._segment = Segment()
        self._status = self._segment.buffer(16).view(torch.int64)
        self._status.fill_(-1)
        if here is not None:
            self._comm = here.comm

    @property
    def status(self) -> str:
        """Path of the segment in which `trains` notes the client that process 0 is training."""
        return self._segment.path

    def trains(self, task: ClientTask | None) -> None:
        """Note the client in shared memory, where another process can read it."""
        self._status.copy_(torch.tensor([-1, -1] if task is None else [task.client_id, task.round]))

    def send(self, message: Any) -> None:
        """Send a message without tensors to every other process."""
        for rank in self.others:
            self._send(rank, Content(message))

    def dispatch(self, messages: Mapping[int, Any], common: Tensors, own: Mapping[int, Tensors]) -> None:
        """Messages by Isend, tensors for all by Bcast unless an earlier message sent them, others by Send.

        Raises:
            WorkerLostError: a process has ended, or is not ready for tensors within the timeout.
        """
        if not self.others:
            return
        fresh = {name: tensor for name, tensor in common.items() if not self._has(name, tensor)}
        heads = tuple((name, tensor.dtype, tuple(tensor.shape), name in fresh) for name, tensor in common.items())
        specs = {rank: Specs.of(own.get(rank, {})) for rank in self.others}
        wait = bool(fresh) or any(spec.nbytes for spec in specs.values())
        self.unanswered = {*messages}
        for rank, message in messages.items():
            self._send(rank, Content(message, heads, specs[rank], wait))
        if wait:
            self._wait_until_all_are_ready()
        for name, tensor in fresh.items():
            self._comm.Bcast(_bytes(tensor.detach().cpu().contiguous()))
            self._known[name] = tensor, tensor._version
        for rank, spec in specs.items():
            if spec.nbytes:
                buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
                spec.fill(buffer, own[rank])
                self._comm.Send(_bytes(buffer), rank, DATA)

    def receive(self, timeout: float | None) -> list[Received]:
        """Poll for messages.

        Raises:
            WorkerLostError: a process of this machine has ended.
        """
        until = None if timeout is None else time.monotonic() + timeout
        pause = Pause()
        while self.others:
            self._receive_arrived()
            if self._backlog or (until is not None and time.monotonic() >= until):
                break
            pause()
        received, self._backlog = self._backlog, []
        return received

    def reduce(self, parts: Tensor) -> None:
        """MPI's Reduce, in place; a sum of exact parts does not depend on the order of additions."""
        if self.others:  # alone, MPI is not even started: it would leave its shared memory behind
            from mpi4py import MPI

            self.send(_REDUCE)
            self._comm.Reduce(MPI.IN_PLACE, parts.numpy())

    def name(self, worker: int) -> str:
        """Its rank, and its process id and host if it has been ready."""
        ready = self._processes.get(worker)
        return f"rank {worker}" + ("" if ready is None else f" (process {ready.process} on {ready.host})")

    def gone(self) -> list[int]:
        """The ranks of processes on this machine that have ended."""
        self._looked = time.monotonic()
        here = socket.gethostname()
        return [rank for rank, ready in self._processes.items() if ready.host == here and not alive(ready.process)]

    def close(self, *, busy: bool) -> None:
        """End the run in the other processes, which wait for the next one.

        Busy ones end with the entry point, or before the next run of a sweep begins.
        """
        self.trains(None)
        self._segment.close()
        if busy:
            _UNFINISHED.append(self)
        else:
            self.send(_OVER)

    def finish_earlier(self) -> None:
        """Wait until the processes that were busy when the run before this one failed are free.

        Raises:
            WorkerLostError: one has ended, or has not answered within the timeout.
        """
        while _UNFINISHED:
            earlier = _UNFINISHED[-1]
            while earlier.unanswered:
                received = earlier.receive(self._timeout_s)
                if not received:
                    rank = min(earlier.unanswered)
                    raise WorkerLostError(rank, f"has not answered for {self._timeout_s:g} s (backend.timeout_s)")
            earlier.send(_OVER)
            _UNFINISHED.remove(earlier)

    def _has(self, name: str, tensor: Tensor) -> bool:
        known, version = self._known.get(name, (None, 0))
        return known is tensor and version == tensor._version

    def _send(self, rank: int, content: Any) -> None:
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self._comm.isend(content, rank, DOWN))

    def _wait_until_all_are_ready(self) -> None:
        """Wait without a collective call, which could be neither interrupted nor cancelled."""
        missing, pause = set(self.others), Pause()
        until = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while missing:
            self._receive_arrived()
            missing -= {rank for rank, message, _ in self._backlog if message == _HERE}
            if until is not None and time.monotonic() > until:
                raise WorkerLostError(min(missing), f"has not answered for {self._timeout_s:g} s (backend.timeout_s)")
            if missing:
                pause()
        self._backlog = [received for received in self._backlog if received[1] != _HERE]

    def _receive_arrived(self) -> None:
        from mpi4py import MPI

        status = MPI.Status()
        while self._comm.iprobe(tag=UP, status=status):
            rank = status.source
            message, specs = self._comm.recv(source=rank, tag=UP)
            buffer = torch.empty(specs.nbytes, dtype=torch.uint8)
            if specs.nbytes:
                self._comm.Recv(_bytes(buffer), rank, DATA)
            if isinstance(message, Ready):
                self._processes[rank] = message
            if message != _HERE and not isinstance(message, Started):
                self.unanswered.discard(rank)
            self._backlog.append((rank, message, specs.views(buffer)))
        # The launcher notices a death too, and ends all processes a moment later without naming the client.
        if not self._backlog and time.monotonic() - self._looked > LOOK_EVERY_S:
            for rank in self.gone():
                os.dup2(launchers_stderr(), 2)
                raise WorkerLostError(rank, "has ended")


class MpiLink:
    """The line of another process to process 0; see `Link`.

    Args:
        here: the processes of the job.
        first: the first message, received already.

    Attributes:
        ended: whether process 0 has ended.
    """

    def __init__(self, here: World, first: Content) -> None:
        self._comm = here.comm
        self._common: dict[str, Tensor] = {}
        self._next: Content | None = first
        self.ended = False

    def wait(self) -> None:
        """Poll until there is a message."""
        if self._next is None:
            wait_until_sent(self._comm)

    def receive(self) -> tuple[Any, Tensors, Tensors]:
        """Poll for a message, then take part in its Bcasts; None at the end of a run."""
        content, self._next = self._next or wait_for_message(self._comm), None
        if content.message is None or content.message == _OVER:
            self.ended = content.message is None
            self._common.clear()
            return None, {}, {}
        if content.wait:
            self._comm.send((_HERE, Specs()), 0, UP)
        for name, dtype, shape, fresh in content.heads:
            known = self._common.get(name)
            if known is None or known.dtype != dtype or known.shape != shape:
                self._common[name] = torch.empty(shape, dtype=dtype)
            if fresh:
                self._comm.Bcast(_bytes(self._common[name]))
        specs = Specs() if content.own is None else content.own
        own = torch.empty(specs.nbytes, dtype=torch.uint8)
        if specs.nbytes:
            self._comm.Recv(_bytes(own), 0, DATA)
        common = {name: self._common[name] for name, *_ in content.heads}
        return content.message, common, specs.views(own)

    def send(self, message: Any, tensors: Tensors) -> None:
        """Send a message, and its tensors as one buffer."""
        specs = Specs.of(tensors)
        self._comm.send((message, specs), 0, UP)
        if specs.nbytes:
            buffer = torch.empty(specs.nbytes, dtype=torch.uint8)
            specs.fill(buffer, tensors)
            request, pause = self._comm.Isend(_bytes(buffer), 0, DATA), Pause()
            while not request.Test():
                pause()

    def starts(self, client_id: int, reports: Callable[[], Sequence[ClientReport]]) -> None:
        """Send that a client's training begins, and the reports before it, always at once."""
        self.send(Started(client_id, reports()), {})

    def finish(self, message: Any, tensors: Tensors, summand: Tensor | None) -> None:
        """Send a round's last message; with a summand, wait until all have done so and take part in the Reduce."""
        self.send(message, tensors)
        if summand is None:
            return
        content = wait_for_message(self._comm)
        if content.message == _REDUCE:
            self._comm.Reduce(summand.numpy(), None)
        else:  # the round failed elsewhere
            self._next = content


def _bytes(tensor: Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor, as uint8 `[nbytes]`."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def alive(process: int) -> bool:
    """Whether a process of this machine still exists."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True
