"""Every strategy under every engine on one backend: `python -m tests.strategies.cells BACKEND FOLDER`.

Each cell is a run of a tiny federation, made from its configuration as `flrl-train` makes it. FOLDER has a folder a
cell for runs that `serial` begins and kills in the middle of a round, and that every backend resumes from a copy.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from flrl.backends import MpiBackend, ProcessBackend, SerialBackend
from flrl.backends.base import Received
from flrl.backends.local import backend as processes
from flrl.backends.mpi import launch
from flrl.backends.mpi.world import world
from flrl.callbacks import Callback, Callbacks
from flrl.cli.app import register_resolvers
from flrl.cli.from_data import filled
from flrl.clients import ClientStore
from flrl.config import CONF_DIR, TrainConfig
from flrl.layout import digest
from flrl.models.nets import mlp_2nn
from flrl.models.two_heads import TwoHeads
from flrl.recipe import Recipe
from flrl.rounds import initial_state
from flrl.runs.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from flrl.types import Broadcast, ClientReport, ClientTask, RoundRecord, ServerState
from flrl.worker import Worker

STRATEGIES = sorted(path.stem for path in (CONF_DIR / "strategy").glob("*.yaml"))
ENGINES = ("eager", "traced", "vectorized", "lightning")
COMMON = (
    "dataset=synthetic_classification", "dataset.num_samples=150", "dataset.test_samples=40",
    "dataset.input_shape=[5]", "dataset.num_classes=3", "partition=quantity_skew", "partition.num_clients=5",
    "partition.min_samples=12", "holdout=0.2", "evaluation=clients",
    "trainer.batch_size=8", "trainer.shuffle=true", "trainer.lr_decay=0.9", "strategy.sampler.num=3",
    "strategy.rounds=4", "paths.output_dir=.",
)  # fmt: skip
MODELS: dict[str, tuple[str, ...]] = {"fedkd": ("model=mentored", "model.mentor.hidden=8")}
"""Models of strategies that need one of their own; the others have the 2NN."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "cfl": ("strategy/sampler=uniform", "strategy.sampler.num=5", "strategy.eps1=100", "strategy.eps2=0"),
    "afl": ("strategy/sampler=uniform", "strategy.sampler.num=5"),
    "fedlin": ("strategy/sampler=uniform", "strategy.sampler.num=5"),
    "fedmd": ("public_samples=20",),
    "dsfl": ("public_samples=20",),
    "feddf": ("public_samples=20",),
    "fedgems": ("public_samples=20",),
    "fedrod": ("model.net._target_=tests.strategies.cells.headed",),
    "fedbn": ("model.net._target_=tests.strategies.cells.normed", "strategy.personal=[net.2.*]"),
}
"""What a strategy needs besides: a net with the layers that it is about, public samples, settings without a default."""
SENT_OTHERWISE: dict[str, str] = {
    "ifca": "a client sends its cluster's update alone, the sum has places for all",
    "cfl": "a client is sent its cluster's model alone, a simulation has all of them",
    "fedamp": "a client is sent its cloud model, which comes with its task",
    "local": "nothing is sent, a simulation gives workers the initial model",
    "centralized": "nothing is sent, a simulation has a worker train on all samples",
}
"""Strategies whose payload is not what a simulation broadcasts to all, and why."""
DOUBLES: dict[str, tuple[int, int]] = {"afl": (0, 1), "fedexp": (1, 1), "fednova": (1, 1), "qfedavg": (1, 1)}
"""Numbers that are sent as float64: how many in the vectors, and how many in all, a loss beside them for instance."""
ROUNDS, SAVED = 4, 2
"""Of a run, and those of which the last checkpoint has been written when it is killed."""


def normed(*, input_shape: Sequence[int], num_classes: int, hidden: int) -> torch.nn.Sequential:
    """A net with BatchNorm."""
    first = torch.nn.Linear(*input_shape, hidden)
    norm = torch.nn.BatchNorm1d(hidden)
    return torch.nn.Sequential(torch.nn.Flatten(), first, norm, torch.nn.ReLU(), torch.nn.Linear(hidden, num_classes))


def headed(*, input_shape: Sequence[int], num_classes: int, hidden: int) -> torch.nn.Module:
    """A net with two heads."""
    return TwoHeads(net=mlp_2nn(input_shape=input_shape, num_classes=num_classes, hidden=hidden))


@cache
def config_of(strategy: str, engine: str) -> dict[str, Any]:
    """The configuration of a cell, resolved."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    register_resolvers()
    model = MODELS.get(strategy, ("model=mlp_2nn", "model.net.hidden=8"))
    overrides = [*COMMON, *model, f"strategy={strategy}", f"trainer={engine}", *SETTINGS.get(strategy, ())]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    return filled(config, Recipe(config).data().splits)


class Noting(Callback):
    """Notes what must not depend on where a run is trained: digests, numbers, clients' checksums."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []
        self.bytes: list[tuple[float, float]] = []

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        record = history[-1]
        numbers = sorted((name, value) for name, value in record.metrics.items() if not name.startswith("time/"))
        reports = [(report.client_id, report.num_steps, report.checksum) for report in record.reports]
        self.rounds.append([record.digest, repr(numbers), repr(reports)])
        self.bytes.append((record.metrics["comm/down_bytes"], record.metrics["comm/up_bytes"]))


class Saving(Callback):
    """Writes a checkpoint after each round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        save_checkpoint(self.folder, state, {})


class Killing(Callback):
    """Kills this process when the first client has trained in the round after `SAVED` ones."""

    def __init__(self) -> None:
        self.round = 0

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        self.round = round

    def on_client_end(self, report: ClientReport) -> None:
        if self.round > SAVED:
            os.kill(os.getpid(), signal.SIGKILL)


def fingerprint(state: ServerState) -> str:
    """Of all that a state holds: the server's tensors and what clients remember."""
    tensors = {"vector": state.vector}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in state.optimizer.items()}
    tensors |= {f"variables/{name}": tensor for name, tensor in state.variables.items()}
    for client, memory in state.memory.items():
        tensors |= {f"memory/{client}/{name}": tensor for name, tensor in memory.items()}
    hashed = sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest(tensor.reshape(-1))}\n".encode())
    return hashed.hexdigest()


@dataclass
class Counting:
    """A communicator that counts the bytes of tensors that process 0 broadcasts and that all of them reduce."""

    comm: Any
    broadcast: int = 0
    reduced: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.comm, name)

    def Bcast(self, buffer: Any) -> Any:
        self.broadcast += buffer.nbytes
        return self.comm.Bcast(buffer)

    def Reduce(self, place: Any, buffer: Any) -> Any:
        self.reduced += buffer.nbytes
        return self.comm.Reduce(place, buffer)


@dataclass
class Counted:
    """A backend, and the bytes that its rounds move: broadcast, reduced, clients of the cohort."""

    backend: Any
    counting: Counting
    moved: list[tuple[int, int, int]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def train(self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[..., None]) -> Received:
        self.backend._hub._known.clear()  # evaluation has sent the vector already
        before = self.counting.broadcast, self.counting.reduced
        received: Received = self.backend.train(broadcast, tasks, on_report)
        self.moved.append((self.counting.broadcast - before[0], self.counting.reduced - before[1], len(tasks)))
        return received


def worker_of(recipe: Recipe, backend: Any, state: ServerState | None = None) -> tuple[Worker, ServerState]:
    """The controller's worker and the state that a run begins with, after all that can be refused before round 1."""
    worker = recipe.worker(backend.share(recipe.data()), threads=1, device="cpu")
    if state is None:
        state = initial_state(worker.strategy, worker.model.vector.clone(), worker.model.layout, worker.seed)
    worker.examiner.try_out()
    worker.rehearse(*worker.strategy.plan(state, worker.data.sizes, worker.seed, worker.model.layout))
    return worker, state


def trained(
    recipe: Recipe, backend: Any, worker: Worker, state: ServerState, *callbacks: Callback
) -> tuple[Noting, ServerState]:
    """What is noted of the rounds that are left, and the last state."""
    noting = Noting()
    try:
        backend.start(worker, recipe)
        state, _ = worker.strategy.fit(
            state, backend=backend, layout=worker.model.layout, seed=worker.seed,
            callbacks=Callbacks([noting, *callbacks]),
        )  # fmt: skip
    finally:
        backend.close()
    return noting, state


def killed(strategy: str, engine: str, folder: Path) -> int | None:
    """Begin a cell's run in a process that kills itself; the signal that ended it, None if the cell is refused."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            recipe, backend = Recipe(config_of(strategy, engine)), SerialBackend()
            worker, state = worker_of(recipe, backend)
            folder.mkdir(parents=True)
            store = ClientStore()
            store.open(folder)
            state = ServerState(state.round, state.vector, state.optimizer, state.variables, store.memory())
            trained(recipe, backend, worker, state, Saving(folder), Killing())
        except (ValueError, TypeError):
            code = 2
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status == 2 else status


def cell(strategy: str, engine: str, make: Callable[[], Any], begun: Path, counting: Counting | None) -> dict[str, Any]:
    """All that is noted of a cell on one backend."""
    recipe = Recipe(config_of(strategy, engine))
    backend = make()
    try:
        worker, state = worker_of(recipe, backend)
    except (ValueError, TypeError) as error:
        backend.close()
        return {"refused": str(error)}
    counted = backend if counting is None else Counted(backend, counting)
    noted, last = trained(recipe, counted, worker, state)
    layout, numbers = worker.model.layout, sum(worker.strategy.vector_sizes(worker.model.layout).values())
    found: dict[str, Any] = {"rounds": noted.rounds, "state": fingerprint(last), "sent": noted.bytes}
    found |= {"moved": [] if counting is None else counted.moved, "numbers": numbers, "dtype": layout.dtype.itemsize}
    own = begun.with_name(f"{begun.name}, {type(backend).__name__}")
    shutil.copytree(begun, own)
    backend = make()
    worker, state = worker_of(recipe, backend, load_checkpoint(list_checkpoints(own)[-1], {}))
    noted, last = trained(recipe, backend, worker, state)
    return found | {"resumed": noted.rounds, "resumed_state": fingerprint(last)}


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Inside the block, processes come from a server that has imported all already, instead of importing it again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.strategies.preloaded"])
    spawn, processes._SPAWN = processes._SPAWN, context  # type: ignore[assignment]
    try:
        yield
    finally:
        processes._SPAWN = spawn


MAKE: dict[str, Callable[[], Any]] = {
    "serial": SerialBackend,
    "process": partial(ProcessBackend, workers=2, schedule="random"),
    "mpi": partial(MpiBackend, schedule="random"),
}


def main(name: str, folder: Path, strategies: Sequence[str], engines: Sequence[str]) -> None:
    """Run all cells on a backend, and write what was noted of each."""
    torch.set_num_threads(1)
    cells = [(strategy, engine) for strategy in strategies for engine in engines]
    begun = {pair: folder / "killed" / ", ".join(pair) for pair in cells}
    noted: dict[str, Any] = {}
    if name == "serial":
        deaths = {pair: killed(*pair, begun[pair]) for pair in cells}
    if name == "mpi":
        launch.prepare("flrl.backends.MpiBackend")
    counting = None
    if name == "mpi" and (here := world()) is not None:
        counting = Counting(here.comm)
        object.__setattr__(here, "comm", counting)
    for pair in cells:
        try:
            with forked_workers() if name == "process" else contextlib.nullcontext():
                found = cell(*pair, MAKE[name], begun[pair], counting)
        except Exception:
            found = {"failed": traceback.format_exc()}
        if name == "serial":
            found["killed_by"] = deaths[pair]
        noted[", ".join(pair)] = found
    (folder / f"{name}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    from tests.strategies import cells as this  # a recipe can be sent to processes that import it by this name

    wanted, where = sys.argv[1], Path(sys.argv[2])
    some = sys.argv[3].split(",") if len(sys.argv) > 3 else STRATEGIES
    under = sys.argv[4].split(",") if len(sys.argv) > 4 else ENGINES
    launch.run_under_mpi(lambda: this.main(wanted, where, some, under))
