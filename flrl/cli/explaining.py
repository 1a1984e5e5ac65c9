"""Error messages for users: one clear line, with the place in the user's own code if the error comes from there."""

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from flrl.cli.arguments import config_dirs
from flrl.cli.groups import group_names
from flrl.cli.keys import either, meant, unknown
from flrl.cli.tracebacks import Place, culprit, described, place_in
from flrl.config import CONF_DIR
from flrl.errors import ClientError, FlrlError, WorkerError

# Errors whose message is for users, unless they come from a user's own code.
_DELIBERATE = (FlrlError, ValueError, OSError, ArithmeticError)
_COMPOSING = (HydraException, OmegaConfBaseException)
_MORE = "HYDRA_FULL_ERROR=1 shows the whole traceback"
_OF_PLUGINS = {
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=submitit_local": "hydra-submitit-launcher",
    "hydra/launcher=submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper=optuna": "hydra-optuna-sweeper",
}
Known = Callable[[], Mapping[str, Any]]


class Explained(SystemExit):
    """Ends the process with code 1 for an error that has been explained.

    Attributes:
        line: the message for users.
        error: the error.
    """

    def __init__(self, line: str, error: Exception) -> None:
        super().__init__(1)
        self.line, self.error = line, error

    def as_exception(self) -> Exception:
        """The error itself, if it is a user's or its message is for users; else a ValueError with the line."""
        error = self.error
        own = not isinstance(error, (*_COMPOSING, ExceptionGroup))
        return error if own and (isinstance(error, _DELIBERATE) or self.line != str(error)) else ValueError(self.line)


_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Inside the block `explained` prints nothing: its caller has the line from `Explained`."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def silent() -> bool:
    """Whether a caller in Python waits for what is raised, as `flrl.train` does."""
    return _SILENT.get()


class TerminalFormatter(logging.Formatter):
    """Formats log records for the terminal as "warning: ...", like errors as "error: ..."."""

    def format(self, record: logging.LogRecord) -> str:
        """The level in lower case, and the message."""
        return f"{record.levelname.lower()}: {super().format(record)}"


class TerminalHandler(logging.Handler):
    """Writes to whatever `sys.stderr` is at the moment, so that a live table stays whole; each message once."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless it has been written."""
        line = self.format(record)
        if line not in self._written:
            self._written.add(line)
            print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def explained(full_error: bool, known: Known = dict) -> Iterator[None]:
    """For an error in the block, print one line and end the process with code 1.

    Args:
        full_error: raise the error unchanged instead.
        known: returns the configuration without the user's overrides, to search for similar keys.
    """
    try:
        yield
    except Exception as error:
        if full_error:
            if isinstance(error, ClientError | WorkerError) and error.__cause__ is None:
                print(error.traceback, end="", file=sys.stderr)  # the traceback of another process
            raise
        line = one_line(error, known)
        if not silent():
            print_error(line, error)
        raise Explained(line, error) from error


def print_error(line: str, error: Exception) -> None:
    """Print a line for an error, and what has been noted on it."""
    print(f"error: {line}", file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"  {note}", file=sys.stderr)


def one_line(error: BaseException, known: Known = dict) -> str:
    """The message for users of an error, on one line; only lists in flrl's own messages have further lines."""
    if isinstance(error, ExceptionGroup):
        return one_line(error.exceptions[0], known)
    if isinstance(error, ClientError | WorkerError):
        return _of_worker(error)
    found, place = culprit(error, causes=not isinstance(error, _DELIBERATE))
    if place is not None and place.own:
        return f"{described(found)}{_at(place)}"
    if isinstance(error, InstantiationException):
        return _of_instantiation(error)
    if isinstance(error, YAMLError):
        return f"a yaml cannot be read: {_on_one_line(str(error))}"
    if isinstance(error, _COMPOSING):
        return _of_composition(error, known)
    return str(error) if isinstance(error, _DELIBERATE) else f"{described(error)}{_at(place)}"


def _of_worker(error: ClientError | WorkerError) -> str:
    place = place_in(error.traceback)
    raised = error.traceback.strip().rpartition("\n")[2]
    if place is None or (not place.own and raised.startswith(("ValueError:", "flrl.errors."))):
        return str(error)
    return described(error).partition(": ")[2] + _at(place)


def _at(place: Place | None) -> str:
    return f"; {_MORE}" if place is None else f" ({place}); {_MORE}"


def _of_instantiation(error: InstantiationException) -> str:
    cause = error.__cause__
    key = re.search(r"full_key: (\S+)", str(error))
    where = f"{key.group(1)}: " if key else ""
    if cause is not None and not isinstance(cause, HydraException):
        return str(cause) if isinstance(cause, ValueError | OSError) else where + _on_one_line(str(cause))
    return where + _on_one_line(str(error))


def _of_composition(error: BaseException, known: Known) -> str:
    text = str(error) if error.__cause__ is None else f"{error}\n{error.__cause__}"
    key = re.search(r"Could not override '([^']+)'\.\nTo append to your config use \+(.+)", text)
    if key:
        return unknown(key[1], key[2], known())
    yaml = re.search(r"In '([^']+)': ConfigKeyError raised while composing config:\s*Key '([^']+)' not in", text)
    if yaml:
        return f"{yaml[1]}: {unknown(yaml[2], yaml[2], known())}; values of your own go below vars"
    twice = re.search(r"Multiple values for (\S+)\. To override a value use 'override \S+: (\S+)'", text)
    if twice:
        return f"{twice[1]} has a choice already: write {twice[1]}={twice[2]}, without +"
    missing = re.search(r"Interpolation key '([^']+)' not found", text)
    user = re.search(r"full_key: (\S+)", text)
    if missing and user:
        return f"{user[1]}: there is no key {missing[1]} to be interpolated"
    line = _on_one_line(text)
    if isinstance(error, OverrideParseException) and error.override not in line:
        line = f"{error.override}: {line}"
    of_list = re.fullmatch(r"Error merging override (.+); Cannot merge DictConfig with ListConfig", line)
    if of_list:
        return f"{of_list[1]}: must be a dict, name: object, not a list"
    if "does not support sweep type" in line:
        return "a sweep takes lists of values; an interval is searched with +hparams_search=optuna_tpe"
    group = re.search(r"Could not override '([\w/]+)'\. No match in the defaults list", line)
    close = meant(group[1], group_names()) if group else []
    return f"{line} Did you mean {either(close)}?" if close else line + _other_choice(line)


def _on_one_line(text: str) -> str:
    """Hydra's message without its hints about internals, on one line."""
    skipped = re.compile(
        r"\s*(full_key|object_type|reference_type|Config search path|provider=|Set the environment|To append to).*"
    )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not skipped.match(line)]
    unique = list(dict.fromkeys(lines))
    return re.sub(r"\s+", " ", "; ".join(unique)).replace(":;", ":").replace(".;", ".")


def _other_choice(text: str) -> str:
    """A suggestion of the choice that was meant, if one of the group is similar; or of the package that brings it."""
    wrong = re.search(r"Could not (?:find|load) '([\w/]+)/(\w+)'", text)
    if wrong is None:
        return ""
    if f"{wrong[1]}={wrong[2]}" in _OF_PLUGINS:
        return f"; it comes with a plugin: pip install 'flrl[sweep]', or {_OF_PLUGINS[f'{wrong[1]}={wrong[2]}']}"
    listed = re.search(r"Available options in '[^']+': ([\w; ]+)", text)
    folders = [CONF_DIR, *map(Path, config_dirs(sys.argv[1:]))]
    there = {path.stem for folder in folders for path in (folder / wrong[1]).glob("*.yaml")}
    close = meant(wrong[2], sorted(there | {*(listed[1].split("; ") if listed else ())}))
    return f"; did you mean {close[0]!r}?" if close else ""
