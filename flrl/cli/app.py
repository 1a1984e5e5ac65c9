"""Entry points under Hydra: every error ends in one clear line, and no run overwrites another."""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import flrl
from flrl.cli.arguments import config_dirs
from flrl.cli.explaining import explained
from flrl.cli.groups import groups
from flrl.cli.keys import check_top_level, composed
from flrl.cli.resuming import resumable
from flrl.config import CONF_DIR, TrainConfig
from flrl.runs.saved import BEFORE


def run_app(task: Callable[[DictConfig], Any], *, config_name: str, schema: type) -> None:
    """Run a task under Hydra with `conf/<config_name>.yaml`.

    Exit codes: 1 for an error, 130 for Ctrl-C, 143 for SIGTERM. `HYDRA_FULL_ERROR=1` shows the traceback of any error.
    """
    if "--version" in sys.argv[1:]:
        print(f"flrl {flrl.__version__}")
        return
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    register_resolvers()
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise instead of printing; `explained` prints

    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> Any:
        with explained(full_error), restored(Path(HydraConfig.get().runtime.output_dir)):
            check_top_level(cfg, schema)
            return task(cfg)

    try:
        with resumable(config_name, sys.argv[1:]) as (name, sys.argv[1:]):
            known = functools.partial(composed, name, sys.argv[1:])
            with explained(full_error, known):
                hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=name)(guarded)()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def register_resolvers() -> None:
    """Register the resolvers of `conf/`: a run's folder, its group in dashboards, the groups that `--help` lists."""
    OmegaConf.register_new_resolver("flrl_run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("flrl_group", _group, replace=True)
    OmegaConf.register_new_resolver("flrl_launch_level", _launch_level, replace=True)
    OmegaConf.register_new_resolver("flrl_groups", lambda *only: groups(config_dirs(sys.argv[1:]), only), replace=True)


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
            if resume not in (None, "auto") and not (Path(resume) / ".hydra").is_dir():
                raise ValueError(f"resume={resume}: there is no run in this folder")
            in_place = resume == "auto" or (resume is not None and Path(resume).resolve() == folder.resolve())
            if not in_place:
                _check_free(folder, "hydra.run.dir")
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
        if config.resume == "auto":  # Hydra calls nothing before it writes a job's `.hydra`
            for saved in sorted(Path(config.hydra.sweep.dir).glob("**/.hydra")):
                with restored(saved.parent):
                    pass
                shutil.copytree(saved, saved.parent / BEFORE)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process if an earlier job of the sweep had the same folder."""
        with explained(full_error=False):
            check_top_level(config, TrainConfig)
            _check_name(config.name)
            if config.resume is None:
                swept = not OmegaConf.is_missing(config.hydra.job, "num")
                _check_free(Path(config.hydra.runtime.output_dir), "hydra.sweep.dir" if swept else "hydra.run.dir")


def _check_name(name: str) -> None:
    if not name.isprintable() or any(part.strip() in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"name={name}: must be the name of a folder below paths.outputs_dir, not empty and without ..")


def _check_free(folder: Path, key: str) -> None:
    if any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "model.safetensors", "summary.json")):
        raise ValueError(f"{folder} already holds a run: resume=auto goes on with it, or choose another {key}")
