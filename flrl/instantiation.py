"""From a resolved configuration to objects, with the types of our own constructors checked by name first."""

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def make(config: Mapping[str, Any], name: str) -> Any:
    """Instantiate the group `name` of a configuration.

    Raises:
        ValueError: a value does not have the type that a constructor in flrl declares; names the key and the value.
    """
    check_types(config[name], name)
    try:
        return instantiate(config[name], _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError):
            message = str(cause)
            raise ValueError(message if message.startswith(name) else f"{name}: {message}") from cause
        if cause is None or isinstance(cause, HydraException | ImportError):
            raise
        raise cause from None


def accepts(node: Mapping[str, Any], argument: str) -> bool:
    """Whether what a node names has an argument of that name, spelt out."""
    try:
        return argument in inspect.signature(get_object(node["_target_"])).parameters
    except (KeyError, ImportError, ValueError):  # `make` says what is wrong with it
        return False


def check_types(node: Any, path: str) -> None:
    """Check plain values (numbers, texts, choices) below a node against the annotations of what it names."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_types(item, f"{path}[{index}]")
    if not isinstance(node, Mapping):
        return
    hints = _hints(str(node.get("_target_", "")))
    for key, value in node.items():
        if key in hints and not _fits(value, hints[key]):
            raise ValueError(f"{path}.{key}={value}: must be {_described(hints[key])}")
        check_types(value, f"{path}.{key}")


def _hints(target: str) -> dict[str, Any]:
    """Annotations of a constructor's arguments, those that it passes on to its bases included."""
    if not target.startswith("flrl."):
        return {}
    named = get_object(target)
    if not isinstance(named, type):
        return get_type_hints(named)
    own = [base for base in named.__mro__ if base.__module__.startswith("flrl.")]
    bases = reversed([base for base in own if "__init__" in vars(base)])
    return {key: hint for base in bases for key, hint in get_type_hints(base.__init__).items()}  # type: ignore[misc]


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if get_origin(hint) in (list, Sequence):
        return isinstance(value, list)
    return isinstance(value, hint) if hint in _NAMES else True


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_described(choice) for choice in get_args(hint))
    return "a list" if get_origin(hint) in (list, Sequence) else _NAMES.get(hint, str(hint))
