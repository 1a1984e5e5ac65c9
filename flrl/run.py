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
from flrl.callbacks.rows import ENVIRONMENTS, read_rows
from flrl.config import TrainConfig
from flrl.environment import differences, environment
from flrl.instantiation import check_groups, make
from flrl.logging import Loggers
from flrl.recipe import Recipe
from flrl.resuming import Resumption, last_good, run_to_resume
from flrl.seeding import Seeds
from flrl.settings import continued, earlier_config
from flrl.trainers import AutoTrainer
from flrl.trainers.auto import fastest
from flrl.types import RoundRecord


def run(cfg: DictConfig) -> float | None:
    """Train as configured; returns the last value of the metric that `optimized_metric` names, None if it has none."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    with _lock(folder):
        return _run(config, folder, hydra.output_subdir)


def _run(config: dict[str, Any], folder: Path, output_subdir: str | None) -> float | None:
    check_groups(config)
    resumed_from = run_to_resume(config["resume"], folder)
    earlier = None if resumed_from is None else earlier_config(resumed_from)
    if earlier is not None and resumed_from is not None:
        config = continued(config, earlier, resumed_from)
    recipe = Recipe(config)
    backend = make(config, "backend")
    data = backend.share(recipe.data())
    worker = recipe.worker(data, threads=backend.threads, device=backend.device)
    if isinstance(worker.trainer, AutoTrainer):
        config = {**config, "trainer": _fastest_trainer(worker.trainer, worker, recipe.seeds)}
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
        environment=_chosen() | environment(),
    )
    start = _start(worker, info)
    callbacks = _callbacks(config)
    worker.evaluator.try_out(worker.model, worker.data, seed=worker.seed)
    if start.state.round < worker.strategy.rounds and not (
        worker.drop_failures or getattr(backend, "dedicated_server", False)
    ):
        worker.rehearse(*worker.strategy.plan(start.state, data.sizes, recipe.seeds.sampling))
    # Nothing can be refused any more: from here on the folder is this run's.
    shutil.rmtree(folder / BEFORE, ignore_errors=True)
    if output_subdir is not None:
        OmegaConf.save(OmegaConf.create(config), folder / output_subdir / "config.yaml")
    _tell(start, info)
    try:
        with terminated_gently():
            backend.start(worker, recipe, folder=folder)
            callbacks.setup(info)
            _, history = worker.strategy.fit(
                start.state,
                backend=backend,
                layout=worker.model.layout,
                seed=recipe.seeds.sampling,
                callbacks=callbacks,
                history=start.history,
            )
    finally:
        try:
            backend.close()
        finally:
            callbacks.close()
    return _optimized(config["optimized_metric"], history)


def _chosen() -> dict[str, Any]:
    """What was chosen in each group, and the job's own overrides."""
    hydra = HydraConfig.get()
    choices = {name: choice for name, choice in hydra.runtime.choices.items() if not name.startswith("hydra/")}
    return {"choices": choices, "overrides": list(hydra.overrides.task)}


def _fastest_trainer(auto: AutoTrainer, worker: Worker, seeds: Seeds) -> dict[str, Any]:
    """The engine that `trainer=auto` stands for where no earlier one is to be kept."""
    strategy, data = worker.strategy, worker.data
    state = strategy.initialize(worker.model.vector.clone(), worker.model.layout)
    return fastest(
        auto,
        worker.model,
        data.splits.train if len(data.splits.train) else data.splits.test,  # a dedicated server has the latter only
        check=lambda trainer: strategy.check(worker.model.module, trainer),  # type: ignore[arg-type]
        train=strategy.train_together,
        broadcast=strategy.broadcast(state, 1, 1.0),
        cohort=len(strategy.sampler(data.num_clients, seed=seeds.sampling, round=1)),
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


def _start(worker: Worker, info: RunInfo) -> Resumption:
    """The last good state of the run to go on with, or the initial state."""
    if info.resumed_from is None:
        vector = worker.model.vector.detach().cpu().clone()
        return Resumption(worker.strategy.initialize(vector, worker.model.layout), [], {})
    found = last_good(info.resumed_from, identity_of(info))
    if info.rounds < found.state.round:
        raise ValueError(
            f"strategy.rounds={info.rounds}: {info.resumed_from} has {found.state.round} rounds already; "
            "there may be more of them, not fewer; nothing was changed"
        )
    return found


def _tell(start: Resumption, info: RunInfo) -> None:
    """Say what a resume leaves out, and what is otherwise than when the earlier rounds were trained."""
    if info.resumed_from is None:
        return
    rows = [row for row in read_rows(info.resumed_from / ENVIRONMENTS) if row["after_round"] < start.state.round]
    said = differences(rows[-1], info.environment) if rows else []
    said += start.set_aside() if info.resumed_from.resolve() == info.folder.resolve() else start.said()
    for line in said:
        print(f"warning: {line}", file=sys.stderr)


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
