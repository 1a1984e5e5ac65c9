"""Takes secrets out of what loggers are given: a dashboard is read by others."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
_NAMES = r"api[_-]?key|access[_-]?key|private[_-]?key|token(?!s|i)|passw(?:or)?d|passphrase|secret|credential"
_SECRET = re.compile(rf"(?<![a-z])(?:{_NAMES})", re.IGNORECASE)
_SHORTEST = 6
"""A value of an environment variable that is shorter would be found in innocent text."""


def masked(value: Any) -> Any:
    """A configuration with `***` for values under keys like `token`, `password` or `api_key`.

    So are strings that contain the value of an environment variable of such a name, wherever they stand.

    Example:
        >>> masked({"a": [{"api_key": "x1"}], "max_tokens": 5, "token": None})
        {'a': [{'api_key': '***'}], 'max_tokens': 5, 'token': None}
    """
    return _masked(value, _of_environment())


def masked_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line, masked likewise; of an argument that names a secret in its value too, the whole value.

    Example:
        >>> masked_arguments(["+vars.password=x1", "seed=1"])
        ['+vars.password=***', 'seed=1']
    """
    known = _of_environment()
    return [_masked_argument(argument, known) for argument in arguments]


def _masked_argument(argument: str, known: Sequence[str]) -> str:
    if not _SECRET.search(argument) and not any(secret in argument for secret in known):
        return argument
    key, equals, _ = argument.partition("=")
    return f"{key}={MASK}" if equals else MASK


def _of_environment() -> list[str]:
    return [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST]


def _masked(value: Any, known: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: MASK if _is_secret(key, inner) else _masked(inner, known) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(inner, known) for inner in value]
    if isinstance(value, str):
        return MASK if any(secret in value for secret in known) else value
    return value


def _is_secret(key: Any, value: Any) -> bool:
    return bool(_SECRET.search(str(key))) and value not in (None, "") and not isinstance(value, bool | Mapping)
