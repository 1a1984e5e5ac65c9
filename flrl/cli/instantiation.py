"""From a resolved configuration to objects; keys and types are checked against signatures first."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate

from flrl.cli.groups import choices_of
from flrl.cli.keys import either, meant
from flrl.cli.signatures import expected, fits, hints_of, shown, taken_by
from flrl.cli.tracebacks import culprit
from flrl.config import CONF_DIR, FILLED, FROM_DATA

_GROUPS = (
    "backend",
    "dataset",
    "partition",
    "model",
    "trainer",
    "strategy",
    "adversary",
    "devices",
    "evaluation",
    "client_store",
)
_GROUPS_OF_SEVERAL = ("logger", "callbacks")
_BY_HYDRA = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")


def make(config: Mapping[str, Any], name: str) -> Any:
    """Instantiate the group `name` of a configuration.

    Raises:
        ValueError: a constructor does not take a key or the type of a value, or raises; the message names the key.
    """
    check(config[name], name)
    try:
        return instantiate(config[name], _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        place = None if cause is None else culprit(cause, causes=False)[1]
        if isinstance(cause, ValueError | TypeError) and not (place and place.own):
            message = str(cause)
            raise ValueError(message if message.startswith(name) else f"{name}: {message}") from cause
        if cause is None or isinstance(cause, HydraException | ImportError):
            raise
        raise cause from None


def accepts(node: Mapping[str, Any], argument: str) -> bool:
    """Whether the `_target_` of a node has an explicit argument of that name."""
    try:
        names = taken_by(str(node["_target_"]))
    except (KeyError, ImportError, ValueError):  # `make` reports it
        return False
    return names is not None and argument in names


def without_more(partition: Mapping[str, Any]) -> Mapping[str, Any]:
    """A partition's node without `seed`, which seeds its generator, and `shift`, unless it has such arguments."""
    more = {name for name in ("seed", "shift") if name in partition and not accepts(partition, name)}
    return {key: value for key, value in partition.items() if key not in more} if more else partition


def shift_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The node of the shift that is applied to the samples of whatever the partition is; None for none."""
    node = (config.get("partition") or {}).get("shift")
    return None if node is None or accepts(config["partition"], "shift") else node


def check_groups(config: Mapping[str, Any]) -> None:
    """Check every group of a run's configuration before the first object is made.

    Raises:
        ValueError: as `check` does, or a group has no `_target_`.
    """
    for path, node in _objects(config):
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ValueError(f"{path}={shown(node)}: must name an object with _target_")
        check(node, path)


def _objects(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _GROUPS:
        yield name, without_more(config[name]) if name == "partition" else config[name]
    if (shift := shift_of(config)) is not None:
        yield "partition.shift", shift
    for name in _GROUPS_OF_SEVERAL:
        yield from ((f"{name}.{key}", node) for key, node in (config[name] or {}).items() if node is not None)


def check(node: Any, path: str) -> None:
    """Check keys and plain values (numbers, texts, choices) below a node against the signatures of its `_target_`s.

    Raises:
        ValueError: a key or value does not fit; the message names its path.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            check(item, f"{path}[{index}]")
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_keys(node, str(node["_target_"]), path)
    for key, value in node.items():
        check(value, f"{path}.{key}")


def _check_keys(node: Mapping[str, Any], target: str, path: str) -> None:
    try:
        names, hints = taken_by(target), hints_of(target)
    except ValueError as error:
        raise ValueError(f"{path}.{error}") from None
    short = target.rpartition(".")[2]
    for key, value in node.items():
        if key in _BY_HYDRA:
            continue
        if names is not None and key not in names:
            raise ValueError(f"{path}.{key}={shown(value)}: {short} takes no {key!r}; {_instead(path, key, names)}")
        left_to_data = value is None and key in FROM_DATA and path.split(".")[0] in FILLED
        if key in hints and not left_to_data and not fits(value, hints[key]):
            raise ValueError(f"{path}.{key}={shown(value)}: {_wanted(f'{path}.{key}', value, hints[key])}")


def _instead(path: str, key: str, names: list[str]) -> str:
    close, others = meant(key, names), choices_of(path, key)
    if close:
        return f"did you mean {either(close)}?"
    return f"{either(others)} does" if others else f"it takes {', '.join(names) or 'nothing'}"


def _wanted(path: str, value: Any, hint: Any) -> str:
    group = path.replace(".", "/")
    if isinstance(value, str) and (CONF_DIR / group).is_dir():
        return f"a choice of this group is written {group}={value}"
    return f"must be {expected(hint)}"
