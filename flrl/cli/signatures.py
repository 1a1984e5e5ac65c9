"""The signatures of constructors and functions that yamls name: their arguments, and the types of plain values."""

import difflib
import importlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_TOP = ("flrl", "torch", "torchvision", "torchmetrics", "pytorch_lightning", "sklearn")
_LOOK_THERE = "put PYTHONPATH=. before the command, or start python -m flrl.train instead of flrl-train"
_PLAIN = (bool, int, float, str)
# Packages whose annotations are exact; those of others may be loose.
_STRICT = ("flrl.", "torch.optim.")


def named_by(target: str) -> Any:
    """The object with a dotted name.

    Raises:
        ValueError: there is no such module, or nothing of that name in it.
        ImportError: the module's own imports fail.
    """
    parts = target.split(".")
    for number in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:number])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, but one of its imports does not
            continue
        for part in parts[number:]:
            if not hasattr(found, part):
                raise ValueError(f"_target_={target}: {name} has no {part!r}{_instead(part, dir(found))}")
            found, name = getattr(found, part), f"{name}.{part}"
        return found
    here = next((path for path in (Path(f"{parts[0]}.py"), Path(parts[0])) if path.exists()), None)
    more = _instead(parts[0], _TOP) if here is None else f"; {here} is in the working directory: {_LOOK_THERE}"
    raise ValueError(f"_target_={target}: there is no module {parts[0]!r} that Python finds{more}")


def _instead(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, [other for other in names if not other.startswith("_")], 1, 0.75)
    return f"; did you mean {close[0]!r}?" if close else ""


def taken_by(target: str) -> list[str] | None:
    """The names of the arguments that a `_target_` takes; None if it takes any, or if they are unknown.

    A class of flrl that passes further arguments on to its base class takes those of the base class too.

    Raises:
        ValueError: as `named_by` does.
    """
    named = named_by(target)
    if not isinstance(named, type):
        return _named(named)
    names: list[str] = []
    for base in named.__mro__:
        if "__init__" not in vars(base):
            continue
        if base is object:  # no class has a constructor
            return None if any("__new__" in vars(one) for one in named.__mro__[:-1]) else names
        own = inspect.signature(base.__init__, follow_wrapped=False).parameters  # type: ignore[misc]
        passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values())
        names += [name for name in _keywords(list(own.values())[1:]) if name not in names]
        if not passed_on:
            return names
        if not base.__module__.startswith("flrl."):
            return None
    return None


def _named(function: Any) -> list[str] | None:
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # written in C
        return None
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else _keywords(list(parameters))


def _keywords(parameters: Sequence[inspect.Parameter]) -> list[str]:
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def hints_of(target: str) -> dict[str, Any]:
    """The annotations of a constructor's arguments, including those passed on to base classes; for `_STRICT` only."""
    if not target.startswith(_STRICT):
        return {}
    named = named_by(target)
    if not isinstance(named, type):
        return get_type_hints(named)
    own = [base for base in named.__mro__ if base.__module__.startswith(_STRICT)]
    bases = reversed([base for base in own if "__init__" in vars(base)])
    return {key: hint for base in bases for key, hint in get_type_hints(base.__init__).items()}  # type: ignore[misc]


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a yaml fits an annotation; a node that names an object fits all but plain types."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in _NAMES:
        return isinstance(value, hint)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    return hint is Any or not ((value is None or isinstance(value, _PLAIN)) and _is_object(hint))


def _is_object(hint: Any) -> bool:
    """Whether an annotation stands for an object rather than a plain value."""
    return get_origin(hint) is Callable or (isinstance(hint, type) and hint.__module__.startswith(("flrl.", "torch")))


def expected(hint: Any) -> str:
    """An annotation in words, for error messages."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        plain = [choice for choice in arguments if not _is_object(choice)]
        if plain in ([], [types.NoneType]):
            plain = list(arguments)
        return " or ".join(dict.fromkeys(expected(choice) for choice in plain))
    if origin in (list, tuple, Sequence):
        return "a list of objects, each with _target_" if arguments and _is_object(arguments[0]) else "a list"
    return "the configuration of an object, with _target_" if _is_object(hint) else _NAMES.get(hint, str(hint))


def shown(value: Any) -> str:
    """A value as it is written in a yaml."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
