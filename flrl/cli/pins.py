"""Keys that experiments and debug yamls set in a group, when another choice of that group does not take them."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flrl.cli.arguments import ADDED_GROUPS, key_of
from flrl.cli.groups import choices_of
from flrl.cli.signatures import taken_by


def without_foreign(
    config: Mapping[str, Any], choices: Mapping[str, Any], folders: Sequence[Path], overrides: Sequence[str]
) -> dict[str, Any]:
    """The configuration without keys that an experiment or a debug yaml sets and the chosen object does not take.

    An experiment sets what it depends on, for instance `strategy.sampler.num`, which `strategy/sampler=all` on the
    command line does not take. For experiments only groups chosen on the command line are changed, so that a mistake in
    an experiment stays an error; for debug yamls all groups are.

    Args:
        config: the resolved configuration.
        choices: the choice of each group, from Hydra.
        folders: folders of yamls, in the order of search.
        overrides: the command line's overrides.
    """
    left: dict[str, Any] = copy.deepcopy(dict(config))
    own = [key_of(override) for override in overrides]
    for group in ADDED_GROUPS:
        chosen = choices.get(group) or []
        for choice in [chosen] if isinstance(chosen, str) else chosen:
            path = next((p for p in (f / group / f"{choice}.yaml" for f in folders) if p.is_file()), None)
            for leaf in _leaves(yaml.safe_load(path.read_text()) or {}) if path else ():
                if leaf[0] != "defaults" and ".".join(leaf) not in own:
                    _drop(left, leaf, None if group == "debug" else {key.replace("/", ".") for key in own})
    return left


def _leaves(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(node, Mapping) or not node:
        yield above
        return
    for key, value in node.items():
        yield from _leaves(value, (*above, str(key)))


def _drop(config: dict[str, Any], leaf: Sequence[str], chosen: set[str] | None) -> None:
    """Remove the first part of a path, with all below it, that the object above it does not take."""
    node: Any = config
    for depth, key in enumerate(leaf):
        if not isinstance(node, dict) or key not in node:
            return
        group = ".".join(leaf[:depth])
        if "_target_" in node and not _takes(str(node["_target_"]), key):
            ours = any(group == choice or group.startswith(f"{choice}.") for choice in chosen or ())
            if ours or (chosen is None and choices_of(group, key)):
                del node[key]
            return
        node = node[key]


def _takes(target: str, key: str) -> bool:
    try:
        names = taken_by(target)
    except (ImportError, ValueError):  # reported when the groups are checked
        return True
    return key.startswith("_") or names is None or key in names
