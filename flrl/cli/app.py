"""Entry points under Hydra: every error ends in one clear line, and no run overwrites another."""

import contextlib
import errno
import functools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import flrl
from flrl.cli.arguments import config_dirs
from flrl.cli.explaining import Explained, explained, print_error, raising, silent
from flrl.cli.groups import groups
from flrl.cli.installed import installed_dirs
from flrl.cli.keys import check_top_level, composed
from flrl.cli.pipes import while_read
from flrl.cli.resuming import resumable
from flrl.config import CONF_DIR, TrainConfig
from flrl.runs.saved import BEFORE, saved_in
from flrl.sweeps import note_failure

_PRINTING = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i"}
"""Options with which a command prints and does nothing else."""


def run_app(task: Callable[[DictConfig], Any], *, config_name: str, schema: type) -> None:
    """Run a task under Hydra with `conf/<config_name>.yaml`.

    Exit codes: 1 for an error, 130 for Ctrl-C, 143 for SIGTERM. `HYDRA_FULL_ERROR=1` shows the traceback of any error.
    """
    if "--version" in sys.argv[1:]:
        print(f"flrl {flrl.__version__}")
        return
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    register_resolvers()
    Plugins.instance().register(InstalledConfigs)
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    command: list[str] = []
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise instead of printing; `explained` prints

    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> Any:
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            return of_sweep(cfg, job)
        with explained(full_error), restored(Path(job.runtime.output_dir)):
            check_top_level(cfg, schema)
            return task(cfg)

    def of_sweep(cfg: DictConfig, job: Any) -> Any:
        """A job that fails does not end its sweep: see `flrl.sweeps.SweepFolder`."""
        folder, started = Path(job.runtime.output_dir), time.time()
        sys.argv[:] = command  # a launcher's other process has another one
        os.environ["FLRL_JOBS"] = str(_at_once(job.launcher.get("n_jobs") or 1))
        try:
            with raising(), explained(full_error), restored(folder):
                check_top_level(cfg, schema)
                return task(cfg)
        except Explained as end:
            print_error(f"job {job.job.num}: {end.line}", end.error)
            note_failure(folder, end.line, started)
        return None

    try:
        with resumable(config_name, sys.argv[1:]) as (name, sys.argv[1:]):
            command[:] = sys.argv
            known = functools.partial(composed, name, sys.argv[1:])
            shown = while_read() if _PRINTING & {*command} else contextlib.nullcontext()
            with explained(full_error, known), shown:
                hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=name)(guarded)()
    except KeyboardInterrupt:
        if not silent():  # the process ends: another Ctrl-C is not to change its exit code
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _at_once(n_jobs: int) -> int:
    """How many jobs a launcher runs at the same time, where -1 is one for each core, as joblib has it."""
    return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs)


def register_resolvers() -> None:
    """Register the resolvers of `conf/`: a run's folder, its group in dashboards, the groups that `--help` lists."""
    OmegaConf.register_new_resolver("flrl_run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("flrl_group", _group, replace=True)
    OmegaConf.register_new_resolver("flrl_launch_level", _launch_level, replace=True)
    OmegaConf.register_new_resolver("flrl_groups", _groups, replace=True)


def _groups(*only: str) -> str:
    return groups([*map(str, installed_dirs()), *config_dirs(sys.argv[1:])], only)


def _run_dir(resume: str | None, default: str) -> str:
    """The folder of the run to resume, or `default`."""
    return default if resume in (None, "auto") else str(resume)


def _launch_level(console: str) -> str:
    """The level from which on Hydra's own messages are printed."""
    return "WARNING" if console in ("json", "quiet") else "INFO"


def _group(name: str) -> str:
    """The group of a run in dashboards: its name, in a sweep with that of the sweep's folder."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return f"{name}/{Path(HydraConfig.get().sweep.dir).name}"
    return name


@contextlib.contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Restore a run's own `.hydra` at the end of the block, if the command that resumes the run was refused."""
    try:
        yield
    finally:
        if (folder / BEFORE).is_dir():  # the run removes it once the command is accepted
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
            (folder / BEFORE).rename(folder / ".hydra")


class InstalledConfigs(SearchPathPlugin):
    """Adds the folders of yamls that installed packages bring to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them after flrl's own."""
        for folder in installed_dirs():
            search_path.append(provider="flrl.conf", path=f"file://{folder}")


class KeepRunFolder(Callback):
    """A Hydra callback that checks folders before Hydra writes: no run overwrites another, a resume needs a run."""

    # Hydra turns a callback's exceptions into warnings; `explained` exits before that.

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process if the run's folder holds a run that is not resumed, or if there is no run to resume."""
        with explained(full_error=False):
            check_top_level(config, TrainConfig)
            _check_name(config.name)
        folder, resume = Path(config.hydra.run.dir), config.resume
        with explained(full_error=False), restored(folder):
            _check_saved(resume, folder, config.hydra.output_subdir)
            in_place = resume == "auto" or (resume is not None and Path(resume).resolve() == folder.resolve())
            if not in_place:
                _check_free(folder, "hydra.run.dir")
            _make(folder, "hydra.run.dir")
        if (folder / ".hydra").is_dir():
            shutil.copytree(folder / ".hydra", folder / BEFORE)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process if a folder of the sweep holds a run already."""
        with explained(full_error=False):
            check_top_level(config, TrainConfig)
            _check_name(config.name)
            if config.resume is None:
                for metrics in sorted(Path(config.hydra.sweep.dir).glob("**/metrics.jsonl")):
                    _check_free(metrics.parent, "hydra.sweep.dir")
            _make(Path(config.hydra.sweep.dir), "hydra.sweep.dir")
        if config.resume == "auto":  # Hydra calls nothing before it writes a job's `.hydra`
            for saved in sorted(Path(config.hydra.sweep.dir).glob("**/.hydra")):
                with restored(saved.parent):
                    pass
                shutil.copytree(saved, saved.parent / BEFORE)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process if an earlier job of the sweep had the same folder."""
        with explained(full_error=False):
            swept = not OmegaConf.is_missing(config.hydra.job, "num")
            if not swept:  # what is wrong with one job of a sweep ends that job alone, unless it is its folder
                check_top_level(config, TrainConfig)
            _check_name(config.name)
            if config.resume is None:
                _check_free(Path(config.hydra.runtime.output_dir), "hydra.sweep.dir" if swept else "hydra.run.dir")


def _check_name(name: str) -> None:
    if not name.isprintable() or any(part.strip() in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"name={name}: must be the name of a folder below paths.outputs_dir, not empty and without ..")


def _make(folder: Path, key: str) -> None:
    """Make a folder before Hydra does, to say which key chose it if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = f"{key}={folder}: cannot be written into ({error.strerror})"
        raise ValueError(f"{reason}; choose another {key} or paths.outputs_dir") from error


def _check_saved(resume: str | None, folder: Path, subdir: str | None) -> None:
    """Raise ValueError if there is no configuration to go on with; `auto` needs one where there is a run."""
    source = folder if resume == "auto" else Path(resume or "")
    begun = subdir == ".hydra" and (source / "checkpoints").is_dir()
    if (begun if resume == "auto" else resume) and saved_in(source) is None:
        raise ValueError(f"resume={resume}: there is no run in this folder ({source}/.hydra/config.yaml is missing)")


def _check_free(folder: Path, key: str) -> None:
    if any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "model.safetensors", "summary.json")):
        raise ValueError(f"{folder} already holds a run: resume=auto goes on with it, or choose another {key}")
