"""The groups of the conf tree, their choices, and the keys in the yaml of a choice."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from textwrap import fill

import yaml

from flrl.config import CONF_DIR

BASE = "base"
"""The folder of yamls that choices of a group have in common; it is included by them and no group itself."""
_OF_ATTACKS = "attack"
_NOT_SHOWN = (BASE, "hydra", _OF_ATTACKS)
_WIDTH = 120


def groups(own: Iterable[str] = (), only: Sequence[str] = ()) -> str:
    """The groups of a run with their choices, a line each; default choices have a star.

    Args:
        own: folders of a user's own yamls.
        only: these groups instead, without stars.
    """
    roots = [CONF_DIR, *map(Path, own)]
    choices: dict[str, set[str]] = {}
    for root in roots:
        for path in root.rglob("*.yaml"):
            group = path.parent.relative_to(root).as_posix()
            first = group.partition("/")[0]
            if group != "." and (first in only if only else first not in _NOT_SHOWN):
                choices.setdefault(group, set()).add(path.stem)
    default = dict(entry.popitem() for entry in defaults_of(CONF_DIR / "train.yaml") if isinstance(entry, dict))
    width = max(map(len, choices)) + 2
    lines = []
    for group in sorted(choices):
        starred = None if only else default.get(group)
        names = [f"{name}*" if starred == name else name for name in sorted(choices[group])]
        start, rest = f"  {group:{width}}", " " * (width + 2)
        lines.append(fill(", ".join(names), _WIDTH, initial_indent=start, subsequent_indent=rest))
    return "\n".join(lines)


def group_names() -> list[str]:
    """The groups that come with flrl, without nested ones."""
    return sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir() and path.name not in (BASE, _OF_ATTACKS))


def defaults_of(path: Path) -> list[str | dict[str, str]]:
    """The defaults list of a yaml."""
    content = yaml.safe_load(path.read_text()) or {}
    return list(content.get("defaults", ())) if isinstance(content, dict) else []


def keys_in(path: Path) -> Iterator[str]:
    """The top-level keys of a yaml and of those that it includes in place: `eager`, `/base/trainer@_here_`."""
    content = yaml.safe_load(path.read_text()) if path.is_file() else None
    yield from (key for key in content or {} if key != "defaults")
    for entry in defaults_of(path) if content else ():
        if isinstance(entry, str) and entry != "_self_" and entry.partition("@")[2] in ("", "_here_"):
            name = entry.partition("@")[0]
            included = CONF_DIR / name[1:] if name.startswith("/") else path.parent / name
            yield from keys_in(included.with_name(f"{included.name}.yaml"))


def choices_of(group: str, key: str | None = None) -> list[str]:
    """The choices of a group that come with flrl, as `group=choice`; with a key, those whose yaml has it."""
    place = group.replace(".", "/")
    paths = sorted((CONF_DIR / place).glob("*.yaml")) if group else []
    return [f"{place}={path.stem}" for path in paths if key is None or key in keys_in(path)]
