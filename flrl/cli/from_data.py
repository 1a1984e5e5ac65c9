"""What a model, an adversary or a strategy takes from the dataset: `input_shape: null` and `num_classes: null`."""

from collections.abc import Iterator, Mapping
from typing import Any

from flrl.cli.signatures import shown
from flrl.config import FILLED, FROM_DATA
from flrl.data import Splits
from flrl.data.facts import facts_of


def filled(config: Mapping[str, Any], splits: Splits) -> dict[str, Any]:
    """The configuration with the dataset's shape and classes where its model, adversary or strategy has null for them.

    Args:
        config: the resolved configuration.
        splits: the whole dataset.

    Raises:
        ValueError: a value cannot be read from the dataset, or one that is given contradicts it.
    """
    groups = [name for name in FILLED if any(_asked(config.get(name), name))]
    if not groups:
        return dict(config)
    facts = facts_of(splits)
    known = {"input_shape": facts.input_shape and [*facts.input_shape], "num_classes": facts.num_classes}
    for path, key, value, target in (asked for name in groups for asked in _asked(config[name], name)):
        if known[key] is None and value is None:
            lacking = "no shape" if key == "input_shape" else "no classes"
            raise ValueError(f"{path}=null: the dataset's samples have {lacking} that could be read; set {path}=...")
        if value is not None and known[key] is not None:
            _check(path, key, value, known[key], target)
    return {**config, **{name: _with(config[name], known) for name in groups}}


def _asked(node: Any, path: str) -> Iterator[tuple[str, str, Any, str]]:
    """Path, key, value and the node's `_target_` of each such value below a node."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _asked(item, f"{path}[{index}]")
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if key in FROM_DATA and "_target_" in node:
            yield f"{path}.{key}", key, value, str(node["_target_"])
        else:
            yield from _asked(value, f"{path}.{key}")


def _check(path: str, key: str, value: Any, known: Any, target: str) -> None:
    more = not path.startswith("adversary.")  # a model may have more classes than the data
    if key == "num_classes" and isinstance(value, int) and (value < known or (value > known and not more)):
        raise ValueError(f"{path}={value}: the dataset has {known} classes")
    # A user's own model may expect another shape, for instance because it resizes its inputs.
    if key == "input_shape" and target.startswith("flrl.") and [*value] != known:
        raise ValueError(f"{path}={shown(value)}: the dataset's samples have the shape {known}")


def _with(node: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_with(item, known) for item in node]
    if not isinstance(node, Mapping):
        return node
    owner = "_target_" in node
    return {k: known[k] if owner and k in FROM_DATA and v is None else _with(v, known) for k, v in node.items()}
