"""From a configuration to a finished run: makes the objects, resumes, trains."""

import functools
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flrl.backends.base import Backend
from flrl.callbacks import Callback, Callbacks, OptimizedMetric, PrivacyLedger, Progress, RunFolder, RunInfo, Target
from flrl.callbacks.checkpoint import identity_of
from flrl.callbacks.progress import said_if_slow
from flrl.cli import log_file
from flrl.cli.from_data import filled
from flrl.cli.instantiation import check_groups, make
from flrl.cli.pins import without_foreign
from flrl.cli.resuming import RESUMED
from flrl.clients import ClientStore
from flrl.config import TrainConfig
from flrl.data import FederatedData
from flrl.logging import Loggers
from flrl.privacy import Spending, charges
from flrl.recipe import Recipe
from flrl.rounds import initial_state, planned
from flrl.runs.checkpoint import kept_indexes
from flrl.runs.environment import differences, environment
from flrl.runs.resuming import Resumption, is_finished, last_good, run_to_resume, source_of
from flrl.runs.rows import ENVIRONMENTS, METRICS, read_rows
from flrl.runs.saved import BEFORE
from flrl.runs.settings import continued, earlier_config, with_value
from flrl.setup import Setup
from flrl.strategies.running import train_clients
from flrl.target import asked
from flrl.trainers import auto
from flrl.worker import Worker


def run(cfg: DictConfig) -> float | None:
    """Train as configured; returns the last value of the metric that `optimized_metric` names, or None.

    Raises:
        ValueError: a setting is invalid, or parts of the setup cannot be combined.
        FlrlError: the run fails while it trains.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    config = without_foreign(config, hydra.runtime.choices, folders, hydra.overrides.task)
    with _lock(folder):
        return _run(config, folder, hydra.output_subdir, swept=hydra.mode == RunMode.MULTIRUN)


def _run(config: dict[str, Any], folder: Path, output_subdir: str | None, *, swept: bool) -> float | None:
    check_groups(config)
    resumed_from = run_to_resume(config["resume"], folder)
    released = source_of(config["resume"], folder)  # also by a run that was killed before its first checkpoint
    earlier = None if resumed_from is None else earlier_config(resumed_from)
    if earlier is not None and resumed_from is not None:
        config = continued(config, earlier, resumed_from)
        if swept and is_finished(folder, config["strategy"]["rounds"]):
            print(f"finished already: {folder}")
            return _last(config["optimized_metric"], read_rows(folder / METRICS))
    recipe = Recipe(config)
    backend = make(config, "backend")
    whole = recipe.data()
    config = filled(config, whole.splits)  # a dedicated server keeps only a part of the data
    recipe, spending = _calibrated(Recipe(config), whole)
    config = dict(recipe.config)
    data = backend.share(whole)
    if config["trainer"]["_target_"] == auto.TARGET:
        config = {**config, "trainer": _chosen_engine(config, data, backend)}
        recipe = Recipe(config)
    worker = recipe.worker(data, threads=backend.threads, device=backend.device)
    info = RunInfo(
        name=config["name"],
        folder=folder,
        seed=config["seed"],
        rounds=worker.strategy.rounds,
        tags=tuple(config["tags"]),
        config=config,
        command=shlex.join(sys.argv),
        model=worker.model,
        data=data,
        resumed_from=resumed_from,
        console=config["console"],
        environment=_chosen(resumed_from) | environment(config),
    )
    store = recipe.client_store()
    start = _start(worker, info, store)
    ledger = None if spending is None else PrivacyLedger(spending, charges(released, start.state.round))
    callbacks = _callbacks(config, ledger)
    shown = any(isinstance(callback, Progress) for callback in callbacks.callbacks)
    worker.examiner.try_out()
    if start.state.round < worker.strategy.rounds and backend.holds_samples and not worker.drop_failures:
        layout, seed = worker.model.layout, recipe.seeds.sampling
        for part in planned(worker.strategy, worker.threat, start.state, data.sizes, seed, layout, worker.fleet).parts:
            worker.rehearse(part.broadcast, part.tasks)
    # The command is accepted: from here on files in the folder are changed.
    shutil.rmtree(folder / BEFORE, ignore_errors=True)
    log_file.begin()
    if output_subdir is not None:
        OmegaConf.save(OmegaConf.create(config), folder / output_subdir / "config.yaml")
    store.open(folder)
    _warn(start, info)
    try:
        with terminated_gently():
            with said_if_slow("waiting for the workers to start", info) if shown else nullcontext():
                backend.start(worker, recipe, folder=folder)
            callbacks.setup(info)
            _, history = worker.strategy.fit(
                backend.keep(start.state, folder),
                backend=backend,
                layout=worker.model.layout,
                seed=recipe.seeds.run,
                sampling_seed=recipe.seeds.sampling,
                callbacks=callbacks,
                history=start.history,
                threat=worker.threat,
                fleet=worker.fleet,
            )
    finally:
        try:
            backend.close()
        finally:
            callbacks.close()
            store.close(kept_indexes(folder))
    return _last(config["optimized_metric"], (record.metrics for record in history))


def _calibrated(recipe: Recipe, data: FederatedData) -> tuple[Recipe, Spending | None]:
    """The recipe with the settings of null that follow from the privacy budget and the cohorts; what counts epsilon."""
    spending = recipe.spending(data)
    found = {} if spending is None else spending.filled()
    if not found:
        return recipe, spending
    config = dict(recipe.config)
    for key, value in found.items():
        config = with_value(config, key, value)
    recipe = Recipe(config)
    return recipe, recipe.spending(data)


def _chosen(resumed_from: Path | None) -> dict[str, Any]:
    """The choice of each group, and the job's overrides."""
    hydra = HydraConfig.get()
    choices = {name: choice for name, choice in hydra.runtime.choices.items() if not name.startswith("hydra/")}
    rows = [] if resumed_from is None else [*read_rows(resumed_from / ENVIRONMENTS)]
    before = rows[-1].get("choices", {}) if rows else {}
    choices = {name: before.get(name, choice) if choice == RESUMED else choice for name, choice in choices.items()}
    return {"choices": choices, "overrides": list(hydra.overrides.task)}


def _chosen_engine(config: dict[str, Any], data: FederatedData, backend: Backend) -> dict[str, Any]:
    """The configuration of the engine that `trainer=auto` chooses in a new run."""
    choose = make(config, "trainer")
    recipe = Recipe({**config, "trainer": {"_target_": "flrl.trainers.EagerTrainer", **choose.keywords}})
    worker = recipe.worker(data, threads=backend.threads, device=backend.device)
    model, strategy = worker.model, worker.strategy
    state = initial_state(strategy, model.vector.detach().cpu().clone(), model.layout, worker.seed)
    cohort = len(strategy.sampler(data.num_clients, seed=recipe.seeds.sampling, round=1))
    sent, public = strategy.broadcast(state, 1, 1.0), data.splits.public
    if not strategy.sends_model:
        sent = replace(sent, vector=sent.vector[:0])
    trial = auto.Trial(
        model=worker.model_of(0),
        source=data.splits.train
        if len(data.splits.train)
        else data.splits.test,  # a dedicated server has no training samples
        setup=Setup.of(model.module, strategy, worker.trainer, data.sizes, public=public),  # type: ignore[arg-type]
        train=functools.partial(train_clients, strategy),
        broadcast=worker.on_device(sent),
        cohort=max(1, cohort),
        public=public,
    )
    chosen: dict[str, Any] = choose(trial)
    return chosen


def _callbacks(config: dict[str, Any], ledger: PrivacyLedger | None) -> Callbacks:
    loggers = Loggers(make(config, "logger") if config["logger"] else {})
    own: dict[str, Callback] = make(config, "callbacks") if config["callbacks"] else {}
    charging = [] if ledger is None else [ledger]
    folder = RunFolder(log_clients=config["log_clients"], sections=[each.summary for each in charging])
    first = [*charging, folder, loggers]
    target = asked(config)
    last = [
        *_expected(config["optimized_metric"]),
        *([] if target is None else [Target(metric=target[0], value=target[1])]),
    ]
    return Callbacks([*first, *(c for c in own.values() if c is not None), *last])


def _expected(metric: str | None) -> list[Callback]:
    """A callback that reports a missing `optimized_metric`, if the user has set it or a sweeper needs it."""
    hydra = HydraConfig.get()
    chosen = metric != TrainConfig.optimized_metric or any("optimized_metric=" in o for o in hydra.overrides.task)
    swept = not OmegaConf.is_missing(hydra.job, "num")
    returned_to = swept and not hydra.sweeper._target_.endswith(".BasicSweeper")
    return [OptimizedMetric(name=metric, required=swept)] if chosen or returned_to else []


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder inside the block, so that one process at a time writes into it."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"another process is running in {folder}") from error


def _start(worker: Worker, info: RunInfo, store: ClientStore) -> Resumption:
    """The state to resume the earlier run from, or the initial state."""
    if info.resumed_from is None:
        vector = worker.model.vector.detach().cpu().clone()
        state = initial_state(worker.strategy, vector, worker.model.layout, worker.seed)
        return Resumption(replace(state, memory=store.memory()), [], {})
    found = last_good(info.resumed_from, identity_of(info), store)
    if info.rounds < found.state.round:
        raise ValueError(
            f"strategy.rounds={info.rounds}: {info.resumed_from} has {found.state.round} rounds already; "
            "there may be more of them, not fewer; nothing was changed"
        )
    return found


def _warn(start: Resumption, info: RunInfo) -> None:
    """Print warnings of files that a resume leaves out, and of differences to the earlier rounds' environment."""
    if info.resumed_from is None:
        return
    rows = [row for row in read_rows(info.resumed_from / ENVIRONMENTS) if row["after_round"] < start.state.round]
    notes = differences(rows[-1], info.environment) if rows else []
    notes += start.set_aside() if info.resumed_from.resolve() == info.folder.resolve() else start.notes()
    for line in notes:
        print(f"warning: {line}", file=sys.stderr)


@contextmanager
def terminated_gently() -> Iterator[None]:
    """Inside the block, SIGTERM ends the run as Ctrl-C does, with a checkpoint; exit code 143."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _last(name: str | None, rounds: Iterable[Mapping[str, Any]]) -> float | None:
    values = [metrics[name] for metrics in rounds if metrics.get(name) is not None] if name else []
    return values[-1] if values else None
