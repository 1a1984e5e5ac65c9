"""Keys that a configuration does not have, and suggestions among those that it has."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flrl.cli.arguments import config_dirs, key_of
from flrl.cli.groups import choices_of, group_names
from flrl.cli.installed import installed_dirs
from flrl.cli.signatures import shown, taken_by
from flrl.config import CONF_DIR

_SIMILAR = 0.65
_SIBLING_BONUS = 0.05
_TIED = 0.06
_MOST = 5
_MAY_BE_EMPTY = ("paths", "vars")


def check_top_level(config: DictConfig, schema: type) -> None:
    """Raise ValueError for an unknown key at the top level, and for a required one that has been removed.

    Args:
        config: the composed configuration.
        schema: the dataclass of the top level.
    """
    types = {field.name: field.type for field in fields(schema)}
    given = _plain(config)
    for key, value in given.items():
        if key not in types:
            known = {name: value for name, value in given.items() if name in types}
            raise ValueError(unknown(key, f"{key}={shown(value)}", known))
    for field in fields(schema):
        allowed = field.metadata.get("allowed")
        if allowed and given.get(field.name) not in (None, *allowed):
            value = str(given[field.name])
            close = meant(value, allowed)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{field.name}={value}: must be {', '.join(allowed[:-1])} or {allowed[-1]}{hint}")
    for name, kind in types.items():
        needed = kind == dict[str, Any] and name not in _MAY_BE_EMPTY
        if name not in given or (needed and not given[name]):
            raise ValueError(f"~{name}: nothing runs without {name}; set it instead of taking it away")


def unknown(key: str, override: str, known: Mapping[str, Any]) -> str:
    """The error message for a key that does not exist, with suggestions.

    Args:
        key: the key with dots, or a group with slashes.
        override: the override as the user has written it.
        known: the configuration without the override.
    """
    start = f"{override}: there is no such key"
    of_hydra = key.startswith("hydra.")  # its keys are suggested for its own alone
    known = {name: node for name, node in known.items() if (name == "hydra") == of_hydra}
    found = meant(key, list(keys_of(known)))
    if found:
        return f"{start}; did you mean {either([_spelled(place) for place in found])}?"
    parent, _, name = key.replace("/", ".").rpartition(".")
    node = _node(known, parent)
    choices = choices_of(key)
    if choices and parent:
        return f"{override}: is a group; choose {either(choices)}"
    if isinstance(node, Mapping) and "_target_" in node:
        target = str(node["_target_"])
        takes = taken_by(target)
        if takes is None or name in takes:
            verb = "may take" if takes is None else "takes"
            return f"{start} in the configuration, but {target} {verb} it: +{override.lstrip('+')}"
        close = meant(name, takes)
        if close:
            return f"{start}; did you mean {either([f'+{parent}.{other}' for other in close])} of {target}?"
    above = meant(parent, list(keys_of(known))) if parent and node is None else []
    if above:
        return f"{start}; did you mean {either([f'{place}.{name}' for place in above])}?"
    others = choices_of(parent, name)
    if others:
        return f"{start} with the present choice; {either(others)} has it"
    if "/" in key:
        return f"{start}; the groups are: {', '.join(group_names())}"
    there = ", ".join(str(name) for name in node if not str(name).startswith("_")) if isinstance(node, Mapping) else ""
    return f"{start}; {parent or 'the top level'} has: {there}" if there else start


def meant(key: str, known: Sequence[str]) -> list[str]:
    """The keys that may have been meant by one that does not exist: all that are about equally likely, in order.

    Keys with the same end are preferred, then those with a similar last part, siblings first.

    Example:
        >>> meant("rounds", ["seed", "strategy.rounds", "strategy.sampler.num"])
        ['strategy.rounds']
        >>> meant("strategy.roundz", ["seed", "strategy.rounds", "strategy.sampler.num"])
        ['strategy.rounds']
    """
    parts = key.replace("/", ".").split(".")
    for length in range(len(parts), 0, -1):
        found = [place for place in known if place.split(".")[-length:] == parts[-length:]]
        if found:
            return found[:_MOST]
    scores: dict[str, float] = {}
    for place in known:
        *above, last = place.split(".")
        similar = difflib.SequenceMatcher(None, parts[-1], last).ratio()
        if similar >= _SIMILAR:
            scores[place] = similar + _SIBLING_BONUS * (above == parts[:-1])
    best = max(scores.values(), default=0.0)
    return [place for place, score in scores.items() if score >= best - _TIED][:_MOST]


def keys_of(node: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """All keys of a configuration with dots, including those of nodes; keys that begin with _ are left out."""
    for name, value in node.items():
        if str(name).startswith("_"):
            continue
        yield f"{above}{name}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{above}{name}.")


def composed(config_name: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    """The configuration of a command line without its overrides of single keys; empty if it cannot be composed.

    Args:
        config_name: name of the primary configuration.
        arguments: the command line's arguments, options first.
    """
    folders = [Path(folder).resolve() for folder in config_dirs(arguments)]
    groups = [_first(argument) for argument in arguments if _is_group(argument, [*installed_dirs(), *folders])]
    search = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        for overrides in (search + groups, search, []):
            try:
                found = compose(config_name, overrides=overrides, return_hydra_config=True)
                return {**_plain(found), "hydra": OmegaConf.to_container(found.hydra, resolve=False)}
            except (HydraException, OmegaConfBaseException):  # a choice of a group may be the error
                continue
    return {}


def _first(argument: str) -> str:
    """A choice of a group; the first one of a sweep; a list of choices as it is."""
    return argument if "=[" in argument else argument.partition(",")[0]


def _is_group(argument: str, folders: Sequence[Path]) -> bool:
    group = key_of(argument)
    return bool(argument.partition("=")[2]) and any((f / group).is_dir() for f in (CONF_DIR, *folders))


def _plain(config: DictConfig) -> dict[str, Any]:
    found: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    return {name: value for name, value in found.items() if name != "hydra"}


def holds(known: Mapping[str, Any], key: str) -> bool:
    """Whether a configuration has a key, even with the value null."""
    above, _, name = key.rpartition(".")
    node = _node(known, above)
    return isinstance(node, Mapping) and name in node


def _node(known: Mapping[str, Any], path: str) -> Any:
    node: Any = known
    for name in path.split(".") if path else []:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _spelled(place: str) -> str:
    """A key as it is written on the command line: nested groups with slashes."""
    group = place.replace(".", "/")
    return group if (CONF_DIR / group).is_dir() else place


def either(names: Sequence[str]) -> str:
    """Names as a choice in words: "a, b or c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
