"""Command-line arguments in the order and the form that Hydra takes."""

from collections.abc import Iterator, Sequence

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
