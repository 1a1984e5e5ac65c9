"""How the entry points run under Hydra: one clear line for what a user got wrong, a traceback for everything else."""

import contextlib
import difflib
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flrl.config import CONF_DIR, EvaluateConfig, TrainConfig
from flrl.errors import ClientError, FlrlError, WorkerError

USER_ERRORS = (HydraException, OmegaConfBaseException, FlrlError, ValueError, OSError, ArithmeticError)


def run_app(task: Callable[[DictConfig], Any], *, config_name: str, schema: type) -> None:
    """Run a task under Hydra with `conf/<config_name>.yaml`.

    Exit codes: 1 for an error, 130 for Ctrl-C, 143 for SIGTERM. `HYDRA_FULL_ERROR=1` shows the traceback of any error.
    """
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
    OmegaConf.register_new_resolver("flrl_run_dir", _run_dir, replace=True)
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing; what is shown is decided here

    @functools.wraps(task)
    def guarded(cfg: DictConfig) -> Any:
        with explained(full_error), restored(Path(HydraConfig.get().runtime.output_dir)):
            return task(cfg)

    try:
        with explained(full_error):
            hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(guarded)()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def explained(full_error: bool) -> Iterator[None]:
    """End the process with code 1 and one line for an error that a user can mend.

    Args:
        full_error: raise it as it is instead.
    """
    try:
        yield
    except USER_ERRORS as error:
        if full_error:
            raise
        if isinstance(error, ClientError | WorkerError):
            print(error.traceback, end="", file=sys.stderr)
        print(f"error: {one_line(error)}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(f"  {note}", file=sys.stderr)
        sys.exit(1)


def one_line(error: BaseException) -> str:
    """What a user needs to know of an error; only lists that an error of ours makes stay on lines of their own."""
    if isinstance(error, InstantiationException):
        cause = error.__cause__
        key = re.search(r"full_key: (\S+)", str(error))
        where = f"{key.group(1)}: " if key else ""
        if cause is not None and not isinstance(cause, HydraException):
            return str(cause) if isinstance(cause, ValueError | OSError) else where + _folded(str(cause))
        return where + _folded(str(error))
    if isinstance(error, HydraException | OmegaConfBaseException):
        text = _folded(str(error)) if error.__cause__ is None else _folded(f"{error}\n{error.__cause__}")
        return text + _suggestion(text)
    return str(error)


def _folded(text: str) -> str:
    """Hydra's message without its hints about internals, on one line."""
    skipped = re.compile(r"\s*(full_key|object_type|reference_type|Config search path|provider=|Set the environment).*")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not skipped.match(line)]
    unique = list(dict.fromkeys(lines))
    return re.sub(r"\s+", " ", "; ".join(unique)).replace(":;", ":").replace(".;", ".")


def _suggestion(text: str) -> str:
    """The key that was meant, where one of the top level is close."""
    wrong = re.search(r"Key '(\w+)' is not in struct|Could not find '([\w/]+)'|Key '(\w+)' not in", text)
    if wrong is None:
        return ""
    word = next(group for group in wrong.groups() if group)
    if "/" in word:
        folder, _, word = word.rpartition("/")
        known = [path.stem for path in (CONF_DIR / folder).glob("*.yaml")]
    else:
        known = [field.name for config in (TrainConfig, EvaluateConfig) for field in fields(config)]
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _run_dir(resume: str | None, default: str) -> str:
    """A resumed run goes on in its own folder; every other one gets a new one."""
    return default if resume in (None, "auto") else str(resume)


def arranged(arguments: list[str]) -> list[str]:
    """Command-line arguments with options before overrides, which is the order that Hydra takes.

    Those of the run that `resume=<folder>` names come first, so a run is resumed without repeating them; what is given
    now wins.
    """
    options, overrides = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        options.append(argument)
        if argument in _OPTIONS_WITH_VALUE:
            options.append(next(remaining, ""))
    folder = next((override.partition("=")[2] for override in overrides if override.startswith("resume=")), "")
    saved = Path(folder) / (BEFORE if (Path(folder) / BEFORE).is_dir() else ".hydra")
    if folder in ("", "auto", "null") or not (saved / "overrides.yaml").exists():
        return options + overrides
    if not any(option.startswith(("-cd", "--config-dir")) for option in options):
        sources = OmegaConf.load(saved / "hydra.yaml").hydra.runtime.config_sources
        options += [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    keys = {_key(override) for override in overrides}
    earlier = [str(override) for override in OmegaConf.load(saved / "overrides.yaml")]
    return options + [override for override in earlier if not _replaced(_key(override), keys)] + overrides


def _replaced(key: str, keys: set[str]) -> bool:
    """Whether new overrides take the place of an earlier one.

    Another backend comes with settings of its own; only those that all backends have, and bits depend on, stay.
    """
    of_backend = key.startswith("backend.") and key not in ("backend.threads", "backend.device", "backend.portable")
    return key in keys or ("backend" in keys and of_backend)


_OPTIONS_WITH_VALUE = (
    "-cp",
    "--config-path",
    "-cn",
    "--config-name",
    "-cd",
    "--config-dir",
    "-p",
    "--package",
    "-c",
    "--cfg",
)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


BEFORE = ".hydra.before"
"""Where the `.hydra` of a run stays while another command asks to go on with that run."""


@contextlib.contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Put a run's own `.hydra` back if the command that wanted to go on with it was refused."""
    try:
        yield
    finally:
        if (folder / BEFORE).is_dir():  # the run removes it once it has accepted the command
            shutil.rmtree(folder / ".hydra", ignore_errors=True)
            (folder / BEFORE).rename(folder / ".hydra")


class KeepRunFolder(Callback):
    """A Hydra callback that looks before Hydra writes: no run overwrites another, no resume from nowhere."""

    # Hydra turns a callback's exceptions into warnings; `explained` turns them into an exit before that.

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process if the run's folder is taken and not to be resumed, or if there is nothing to resume."""
        folder, resume = Path(config.hydra.run.dir), config.resume
        with explained(full_error=False), restored(folder):
            if resume not in (None, "auto") and not (Path(resume) / ".hydra").is_dir():
                raise ValueError(f"resume={resume}: there is no run in this folder")
            in_place = resume == "auto" or (resume is not None and Path(resume).resolve() == folder.resolve())
            if not in_place:
                _check_free(folder)
        if (folder / ".hydra").is_dir():
            shutil.copytree(folder / ".hydra", folder / BEFORE)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process if the sweep's folder holds a run already."""
        with explained(full_error=False):
            if config.resume is None:
                for metrics in sorted(Path(config.hydra.sweep.dir).glob("**/metrics.jsonl")):
                    _check_free(metrics.parent)
        if config.resume == "auto":  # Hydra tells nobody before it writes a job's `.hydra`
            for saved in sorted(Path(config.hydra.sweep.dir).glob("**/.hydra")):
                with restored(saved.parent):
                    pass
                shutil.copytree(saved, saved.parent / BEFORE)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """End the process if an earlier job of the sweep had the same folder."""
        with explained(full_error=False):
            if config.resume is None:
                _check_free(Path(config.hydra.runtime.output_dir))


def _check_free(folder: Path) -> None:
    if any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints", "model.safetensors", "summary.json")):
        raise ValueError(f"{folder} already holds a run: resume=auto goes on with it, or choose another hydra.run.dir")
