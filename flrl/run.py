"""From a configuration to a finished run: builds the objects, resumes, fits."""

import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from flrl.app import BEFORE
from flrl.backends.worker import Worker
from flrl.callbacks import Callback, Callbacks, OptimizedMetric, RunFolder, RunInfo
from flrl.callbacks.checkpoint import identity_of
from flrl.callbacks.run_folder import read_history
from flrl.checkpoint import list_checkpoints, load_checkpoint
from flrl.config import TrainConfig
from flrl.instantiation import check_groups, make
from flrl.layout import digest
from flrl.logging import Loggers
from flrl.recipe import Recipe
from flrl.trainers import AutoTrainer
from flrl.trainers.auto import fastest
from flrl.types import RoundRecord, ServerState


def run(cfg: DictConfig) -> float | None:
    """Train as configured; returns the last value of the metric that `optimized_metric` names, None if it has none."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    with _lock(folder):
        return _run(config, folder, hydra.output_subdir)


def _run(config: dict[str, Any], folder: Path, output_subdir: str | None) -> float | None:
    check_groups(config)
    recipe = Recipe(config)
    backend = make(config, "backend")
    data = backend.share(recipe.data())
    worker = recipe.worker(data, threads=backend.threads, device=backend.device)
    resumed_from = _resume_folder(config["resume"], folder)
    if isinstance(worker.trainer, AutoTrainer):
        config = {**config, "trainer": _chosen_trainer(worker.trainer, worker, resumed_from)}
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
    )
    state, history = _first_state(worker, info)
    callbacks = _callbacks(config)
    worker.evaluator.try_out(worker.model, worker.data, seed=worker.seed)
    if state.round < worker.strategy.rounds and not (
        worker.drop_failures or getattr(backend, "dedicated_server", False)
    ):
        worker.rehearse(*worker.strategy.plan(state, data.sizes, worker.seed))
    # Nothing can be refused any more: from here on the folder is this run's.
    shutil.rmtree(folder / BEFORE, ignore_errors=True)
    if output_subdir is not None:
        OmegaConf.save(OmegaConf.create(config), folder / output_subdir / "config.yaml")
    try:
        with terminated_gently():
            backend.start(worker, recipe, folder=folder)
            callbacks.setup(info)
            _, history = worker.strategy.fit(
                state,
                backend=backend,
                layout=worker.model.layout,
                seed=info.seed,
                callbacks=callbacks,
                history=history,
            )
    finally:
        try:
            backend.close()
        finally:
            callbacks.close()
    return _optimized(config["optimized_metric"], history)


def _chosen_trainer(auto: AutoTrainer, worker: Worker, resumed_from: Path | None) -> dict[str, Any]:
    """The engine that `trainer=auto` stands for: that of the run to be resumed, else the fastest one."""
    # Where the run goes on in its own folder, Hydra has written the new configuration there already.
    folders = [] if resumed_from is None else [resumed_from / BEFORE, resumed_from / ".hydra"]
    earlier = next((path for folder in folders if (path := folder / "config.yaml").exists()), None)
    if earlier is not None:
        trainer: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(earlier))["trainer"]  # type: ignore
        return trainer | {name: value for name, value in auto.options.items() if name != "memory_format"}
    strategy, data = worker.strategy, worker.data
    state = strategy.initialize(worker.model.vector.clone(), worker.model.layout)
    return fastest(
        auto,
        worker.model,
        data.splits.train if len(data.splits.train) else data.splits.test,  # a dedicated server has the latter only
        check=lambda trainer: strategy.check(worker.model.module, trainer),  # type: ignore[arg-type]
        train=strategy.train_together,
        broadcast=strategy.broadcast(state, 1, 1.0),
        cohort=len(strategy.sampler(data.num_clients, seed=worker.seed, round=1)),
    )


def _callbacks(config: dict[str, Any]) -> Callbacks:
    loggers = Loggers(make(config, "logger") if config["logger"] else {})
    own: dict[str, Callback] = make(config, "callbacks") if config["callbacks"] else {}
    first = [RunFolder(log_clients=config["log_clients"]), loggers]
    return Callbacks([*first, *(c for c in own.values() if c is not None), *_expected(config["optimized_metric"])])


def _expected(metric: str | None) -> list[Callback]:
    """Has the run say that the metric for sweepers is missing, where somebody has asked for it."""
    hydra = HydraConfig.get()
    chosen = metric != TrainConfig.optimized_metric or any("optimized_metric=" in o for o in hydra.overrides.task)
    swept = not OmegaConf.is_missing(hydra.job, "num")
    returned_to = swept and not hydra.sweeper._target_.endswith(".BasicSweeper")
    return [OptimizedMetric(name=metric, required=swept)] if chosen or returned_to else []


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time writes into a run's folder."""
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"another process is running in {folder}") from error


def _resume_folder(resume: str | None, folder: Path) -> Path | None:
    """The run folder to resume from, or None to start from the beginning."""
    source = folder if resume == "auto" else Path(resume) if resume else None
    if source is not None and (source / "summary.json").exists() and not list_checkpoints(source):
        raise ValueError(f"{source} holds a finished run without checkpoints: there is nothing to resume from")
    return source if source is not None and list_checkpoints(source) else None


def _first_state(worker: Worker, info: RunInfo) -> tuple[ServerState, list[RoundRecord]]:
    """The newest checkpoint's state and the rounds before it, or the initial state."""
    if info.resumed_from is None:
        return worker.strategy.initialize(worker.model.vector.detach().cpu().clone(), worker.model.layout), []
    path = list_checkpoints(info.resumed_from)[-1]
    state = load_checkpoint(path, identity_of(info))
    history = read_history(info.resumed_from, state.round)
    if history[-1].digest != digest(state.vector):
        raise ValueError(
            f"{path} is not the state after round {state.round} of {info.resumed_from}; nothing was changed"
        )
    return state, history


@contextmanager
def terminated_gently() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, through a checkpoint; exit code 143."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _optimized(name: str | None, history: list[RoundRecord]) -> float | None:
    values = [record.metrics[name] for record in history if name in record.metrics] if name else []
    return values[-1] if values else None
