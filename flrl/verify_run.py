"""Recomputes rounds of a run, or one client's training, and compares the results with those in the run's folder."""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from flrl.callbacks import Callback, Callbacks
from flrl.callbacks.run_folder import digest_row
from flrl.cli.instantiation import make
from flrl.clients import ClientStore
from flrl.evaluate_run import check_partition, saved_config
from flrl.evaluation import Evaluator
from flrl.layout import ParameterLayout, digest
from flrl.recipe import Recipe
from flrl.rounds import initial_state, planned
from flrl.runs.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint
from flrl.runs.environment import differences, environment
from flrl.runs.integrity import check_files
from flrl.runs.rows import DIGESTS, ENVIRONMENTS, METRICS, read_rows
from flrl.types import RoundRecord, ServerState
from flrl.worker import Worker, client_batches

Row = Mapping[str, Any]


def verify_run(cfg: DictConfig) -> bool:
    """Verify as configured by `conf/verify.yaml`; prints the result, and returns whether everything is the same.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the run's files are damaged or do not match each other or its data, or a setting is invalid.
    """
    folder = Path(cfg.run)
    config = saved_config(folder, cfg.data_dir)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    backend = make(settings, "backend")
    recipe = Recipe(config)
    check_files(folder, ParameterLayout(recipe.module(), recipe.strategy().personal))
    recorded = Recorded.read(folder)
    rounds = recorded.chosen(cfg.rounds, cfg.client, cfg.round)
    data = backend.share(recipe.data())
    check_partition(folder, data)
    worker = recipe.worker(data, threads=backend.threads, device=backend.device)
    worker = replace(worker, evaluator=_Never())
    store = recipe.client_store()
    start = _start(folder, worker, recorded, rounds.start, store)
    console = Console(highlight=False, soft_wrap=True)
    _warn(console, config["backend"], backend)
    _warn_of_environment(console, folder, rounds)
    comparison = Comparison(recorded, worker, folder)
    stop = rounds.stop - 1 if cfg.client is None else rounds.start - 1
    scratch = tempfile.TemporaryDirectory(prefix="flrl-verify-")  # the run's own folder is not changed
    store.open(Path(scratch.name), take_in=False)
    try:
        backend.start(worker, recipe)
        start = backend.keep(start, folder)
        state = _advance(worker, backend, recipe.seeds.sampling, start, comparison, stop)
        if cfg.client is not None and not comparison.differences:
            strategy, layout, seed = worker.strategy, worker.model.layout, recipe.seeds.sampling
            broadcast, tasks = planned(strategy, worker.threat, state, backend.sizes, seed, layout)
            # The whole client batch is trained: the last bits may depend on it.
            batches = client_batches(worker.batched(tasks))
            chosen = [batch for batch in batches if cfg.client in (task.client_id for task in batch)]
            if not chosen:
                cohort = ", ".join(str(task.client_id) for task in tasks) or "empty"
                raise ValueError(f"client={cfg.client}: takes no part in round {cfg.round}; its cohort is {cohort}")
            reports = backend.train(broadcast, chosen[0], lambda report: None).reports
            checksums = {report.client_id: report.checksum for report in reports}
            comparison.client(cfg.round, cfg.client, checksums[cfg.client])
    finally:
        backend.close()
        scratch.cleanup()
    if comparison.differences:
        for line in comparison.differences:
            console.print(line)
        return False
    what = f"rounds {rounds.start} to {rounds.stop - 1}: every digest is" if cfg.client is None else ""
    what = what or f"client {cfg.client} in round {cfg.round}: its update is"
    console.print(f"verified  {folder}  {what} the same")
    return True


@dataclass(frozen=True, slots=True)
class Recorded:
    """The digests in a run's folder.

    Attributes:
        folder: the run's folder.
        digests: digest of the model after each round, by round.
        details: rows of `digests.jsonl` by round; may be incomplete.
    """

    folder: Path
    digests: Mapping[int, str]
    details: Mapping[int, Row]

    @classmethod
    def read(cls, folder: Path) -> "Recorded":
        """Read the digests in a run's folder.

        Raises:
            ValueError: no round has been completed.
        """
        digests = {row["round"]: row["digest"] for row in read_rows(folder / METRICS) if row["round"] > 0}
        if not digests:
            raise ValueError(f"run={folder}: no round has been completed there")
        return cls(folder, digests, {row["round"]: row for row in read_rows(folder / DIGESTS)})

    def chosen(self, rounds: str | None, client: int | None, round: int | None) -> range:
        """The rounds to compare, from the settings `rounds` ("3" or "3..5"), `client` and `round`.

        Raises:
            ValueError: the settings are invalid, or the run does not have these rounds.
        """
        if (client is None) != (round is None) or (client is not None and rounds is not None):
            raise ValueError("client and round come together, and without rounds: client=17 round=3")
        text = str(round) if round is not None else rounds
        if text is None:
            return range(1, max(self.digests) + 1)
        found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
        if found is None:
            raise ValueError(f"rounds={text}: must be one round, 3, or several, 3..5")
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last <= max(self.digests):
            name = "rounds" if round is None else "round"
            raise ValueError(f"{name}={text}: {self.folder} holds rounds 1 to {max(self.digests)}")
        return range(first, last + 1)


class Comparison(Callback):
    """Compares each recomputed round with the recorded one.

    Attributes:
        differences: lines that describe the first difference; empty if there is none.
    """

    def __init__(self, recorded: Recorded, worker: Worker, folder: Path) -> None:
        self.differences: list[str] = []
        self._recorded, self._worker, self._folder = recorded, worker, folder

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Compare the round's digest; if it differs, find client and parameter."""
        record = history[-1]
        if record.digest == self._recorded.digests[state.round]:
            return
        self.differences.append(
            f"differs   {self._folder}  round {state.round}: "
            f"recorded {self._recorded.digests[state.round]}, recomputed {record.digest}"
        )
        found = digest_row(record, state, self._worker.model.layout)
        kept = self._recorded.details.get(state.round)
        if kept is None:
            self.differences.append(f"          {DIGESTS} has nothing of this round: client and parameter are unknown")
            return
        clients = [client for client in kept["clients"] if found["clients"].get(client) != kept["clients"][client]]
        names = [name for name in kept["parameters"] if found["parameters"].get(name) != kept["parameters"][name]]
        if clients:
            self.differences.append(f"          first client: {clients[0]}{_of(clients, kept['clients'])}")
        else:
            self.differences.append("          no client's update: it is the server's step that differs")
        if names:
            size = self._size(names[0], state)
            self.differences.append(f"          first parameter: {names[0]}{_of(names, kept['parameters'])}{size}")

    def client(self, round: int, client_id: int, checksum: str) -> None:
        """Compare the checksum of one client's update.

        Raises:
            ValueError: the run has not recorded it.
        """
        kept = self._recorded.details.get(round, {}).get("clients", {}).get(str(client_id))
        if kept is None:
            raise ValueError(f"{self._folder / DIGESTS} has nothing of client {client_id} in round {round}")
        if checksum != kept:
            self.differences.append(
                f"differs   {self._folder}  client {client_id} in round {round}: recorded {kept}, recomputed {checksum}"
            )

    def _size(self, name: str, state: ServerState) -> str:
        """The largest difference of a parameter as text, if there is a checkpoint of the round."""
        path = checkpoint_path(self._folder, state.round)
        if not path.exists():
            return ""
        layout = self._worker.model.layout
        entry = next(entry for entry in layout.entries if entry.name == name)
        kept = load_checkpoint(path, {"model": layout.fingerprint}).vector
        largest = (kept[entry.slice].double() - state.vector[entry.slice].double()).abs().max()
        return f", by {float(largest):.3g} at most"


class _Stop(Callback):
    def __init__(self, comparison: Comparison, last: int) -> None:
        self._comparison, self._last = comparison, last

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        done = bool(history) and history[-1].round >= self._last
        return "compared" if done or self._comparison.differences else None


class _Never(Evaluator):
    """Evaluates nothing: verification compares models, not metrics."""

    def due(self, round: int, rounds: int) -> tuple[bool, bool]:
        return False, False


def _advance(
    worker: Worker, backend: Any, sampling_seed: int, state: ServerState, comparison: Comparison, last: int
) -> ServerState:
    """Recompute and compare the rounds up to `last`, or up to the first that differs."""
    if state.round >= last:
        return state
    state, _ = worker.strategy.fit(
        state,
        backend=backend,
        layout=worker.model.layout,
        seed=worker.seed,
        sampling_seed=sampling_seed,
        callbacks=Callbacks([comparison, _Stop(comparison, last)]),
        threat=worker.threat,
    )
    return state


def _start(folder: Path, worker: Worker, recorded: Recorded, first: int, store: ClientStore) -> ServerState:
    """The state of the last checkpoint before the round `first`, or the initial state."""
    before = [path for path in list_checkpoints(folder) if int(path.name.removeprefix("round-")) < first]
    layout = worker.model.layout
    if not before:
        state = initial_state(worker.strategy, worker.model.vector.detach().cpu().clone(), layout, worker.seed)
        return replace(state, memory=store.memory())
    state = load_checkpoint(before[-1], {"model": layout.fingerprint, "seed": worker.seed}, store)
    if digest(state.vector) != recorded.digests.get(state.round):
        raise ValueError(f"{before[-1]} is not the state after round {state.round} that {folder / METRICS} names")
    return state


def _warn(console: Console, had: Mapping[str, Any], backend: Any) -> None:
    for name in ("threads", "device", "portable"):
        there, here = had.get(name, False), getattr(backend, name, False)
        if str(there) != str(here):
            console.print(f"note      the run had backend.{name}={there}, this is {here}: expect other bits")


def _warn_of_environment(console: Console, folder: Path, rounds: range) -> None:
    """Print differences to the environment in which the verified rounds were trained."""
    rows = list(read_rows(folder / ENVIRONMENTS))  # earlier versions of flrl have not written this file
    ends = [*(row["after_round"] for row in rows[1:]), math.inf]
    trained = [
        row
        for row, end in zip(rows, ends, strict=False)
        if row["after_round"] + 1 < rounds.stop and end >= rounds.start
    ]
    now = environment() if trained else {}
    for line in dict.fromkeys(line for row in trained for line in differences(row, now)):
        console.print(f"note      {line}")


def _of(some: Sequence[str], those: Mapping[str, Any]) -> str:
    return f" ({len(some)} of {len(those)} differ)"
