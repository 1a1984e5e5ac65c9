"""Command-line arguments in the order and the form that Hydra takes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

ADDED_GROUPS = ("experiment", "debug", "hparams_search")
"""Groups without a default choice: Hydra needs a + before them."""
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


def arranged(arguments: Sequence[str]) -> list[str]:
    """Arguments with options before overrides, and `experiment=x` as `+experiment=x`.

    Example:
        >>> arranged(["experiment=mnist_fedavg", "seed=1", "--cfg", "job"])
        ['--cfg', 'job', '+experiment=mnist_fedavg', 'seed=1']
    """
    options, overrides = parted(arguments)
    return options + [f"+{given}" if given.partition("=")[0] in ADDED_GROUPS else given for given in overrides]


def quietened(arguments: Sequence[str]) -> list[str]:
    """Arguments with `console=quiet` in place of `-q`.

    Example:
        >>> quietened(["-q", "seed=1"])
        ['console=quiet', 'seed=1']
    """
    return ["console=quiet" if argument in ("-q", "--quiet") else argument for argument in arguments]


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide arguments into options with their values, and overrides."""
    options, overrides = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        options.append(argument)
        if argument in _OPTIONS_WITH_VALUE:
            options.append(next(remaining, ""))
    return options, overrides


def config_dirs(arguments: Sequence[str]) -> Iterator[str]:
    """The folders of a user's own yamls in the arguments: the values of `--config-dir`."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        option, equals, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            yield value if equals else following


def key_of(override: str) -> str:
    """The key or group of an override.

    Example:
        >>> [key_of(override) for override in ("+a.b=1", "~c", "strategy/sampler=all")]
        ['a.b', 'c', 'strategy/sampler']
    """
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def value_of(key: str, overrides: Sequence[str]) -> str | None:
    """The last value of a key among overrides, without quotes; None if there is none."""
    values = [override.partition("=")[2] for override in overrides if key_of(override) == key]
    return values[-1].strip("'\"") if values else None


def merged(lines: Iterable[Iterable[str]], config: Mapping[str, Any]) -> list[str]:
    """The overrides that lead to a run that was resumed: a later one of a key replaces an earlier one in its place.

    Where a resume chooses another yaml of a group, earlier keys of the group that the choice does not have are left
    out, and `resume` always.

    Args:
        lines: the overrides of the start and of each resume.
        config: the run's resolved configuration.

    Example:
        >>> lines = [["backend=process", "backend.workers=2", "seed=1"], ["resume=x", "backend=serial", "seed=2"]]
        >>> merged(lines, {"seed": 2, "backend": {"threads": 1}})
        ['backend=serial', 'seed=2']
    """
    by_key: dict[str, str] = {}
    for given in lines:
        own = {key_of(override): override for override in given}
        groups = tuple(f"{key.replace('/', '.')}." for key in own)
        by_key = {key: value for key, value in by_key.items() if not key.startswith(groups) or _has(config, key)} | own
    by_key.pop("resume", None)
    return [*by_key.values()]


def _has(config: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return False
        config = config[name]
    return True
