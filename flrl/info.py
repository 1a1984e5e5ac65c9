"""What there is to choose: `python -m flrl.info`, `... strategy` or `... strategy=scaffold`.

Lines come from the first comment of each choice's yaml, pages from that yaml and from the docstrings of what it names.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.syntax import Syntax

from flrl.cli.arguments import config_dirs, key_of
from flrl.cli.groups import BASE, defaults_of
from flrl.cli.installed import installed_dirs
from flrl.cli.pipes import while_read
from flrl.config import CONF_DIR

_NOT_SHOWN = (BASE, "hydra", "paths", "debug")
_ARGS = re.compile(r"^Args:\n((?:(?: .*)?(?:\n|$))+)", re.MULTILINE)
_AS_FOR = re.compile(r"(?:options:|arguments and errors) as for `([\w.]+)`")
_ENTRY = re.compile(r"^ {4}(\w+)(?: \(.*?\))?: (.*(?:\n {5,}.*)*)", re.MULTILINE)


def info(arguments: Sequence[str], console: Console | None = None) -> None:
    """Print all groups, one group, or one choice.

    Args:
        arguments: none, names of groups, or `group=choice`; `--config-dir=<folder>` adds a user's own yamls.
        console: where to print; the terminal by default.

    Raises:
        ValueError: there is no such group or choice.
    """
    console = Console(highlight=False, soft_wrap=True) if console is None else console
    own = list(config_dirs(list(arguments)))
    roots = [CONF_DIR, *installed_dirs(), *map(Path, own)]
    wanted = [argument for argument in arguments if not argument.startswith("-") and argument not in own]
    for option in (argument for argument in arguments if argument.startswith("-")):
        if option.partition("=")[0] not in ("--config-dir", "-cd"):
            raise ValueError(
                f"{option}: there is no such option; flrl-info [group] [group=choice] [--config-dir=folder]"
            )
    for folder in own:
        if not Path(folder).is_dir():
            raise ValueError(f"--config-dir={folder}: there is no such folder")
    found = choices(roots)
    if not wanted:
        for group in found:
            _list(group, found[group], console)
    for argument in wanted:
        group, name = _meant(argument, found)
        _known("group", group, found)
        if name:
            _known(group, name, found[group])
            _page(group, found[group][name], roots, console)
        else:
            _list(group, found[group], console)


def choices(roots: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """The yaml of each choice by group and name; of two folders that have the same one the later counts."""
    found: dict[str, dict[str, Path]] = {}
    for root in roots:
        for path in sorted(root.rglob("*.yaml")):
            group = path.parent.relative_to(root).as_posix()
            if group != "." and group.partition("/")[0] not in _NOT_SHOWN:
                found.setdefault(group, {})[path.stem] = path
    return {group: dict(sorted(found[group].items())) for group in sorted(found)}


def header(path: Path) -> list[str]:
    """The lines of the comment at the beginning of a yaml."""
    lines = path.read_text().splitlines()
    comments = [line for line in lines if not line.startswith("# @package")]
    end = next((index for index, line in enumerate(comments) if not line.startswith("#")), len(comments))
    return [line.removeprefix("#").removeprefix(" ") for line in comments[:end]]


def whole(line: str) -> str:
    """A line without the beginning of a sentence that does not end on it; with "..." where it has no other.

    Example:
        >>> whole("Each client trains alone. The test metrics are"), whole("Clients learn, with the mean")
        ('Each client trains alone.', 'Clients learn, with the mean ...')
    """
    if not line or line.endswith((".", "?", "!")):
        return line
    sentences = re.match(r".*[\w)]{2}[.?!](?= [^\d])", line)
    return sentences[0] if sentences else f"{line.rstrip(',;:')} ..."


def settings(path: Path, roots: Sequence[Path], group: str) -> dict[str, Any]:
    """The keys of a choice with their values, those of yamls that it includes in place among them."""
    content = yaml.safe_load(path.read_text()) or {}
    merged: dict[str, Any] = {}
    for entry in defaults_of(path):
        if isinstance(entry, str) and entry != "_self_" and entry.partition("@")[2] in ("", "_here_"):
            name = entry.partition("@")[0]
            base = f"{name.lstrip('/')}.yaml" if name.startswith("/") else f"{group}/{name}.yaml"
            there = [root / base for root in roots if (root / base).is_file()]
            if there:
                merged |= settings(there[-1], roots, Path(base).parent.as_posix())
    return merged | {key: value for key, value in content.items() if key != "defaults"}


def documentation(target: str) -> list[str]:
    """The docstrings of a module and of what is named in it, for `flrl.strategies.Scaffold`; nothing is imported."""
    found = _definition(target)
    return [] if found is None else [text for part in found[1:] if (text := ast.get_docstring(part))]


def meanings(target: str) -> dict[str, str]:
    """What each argument means, by the docstring of a class or function, and of the classes that it is derived from."""
    found = _definition(target)
    if found is None:
        return {}
    module, tree, node = found
    merged: dict[str, str] = {}
    for base in reversed(node.bases) if isinstance(node, ast.ClassDef) else ():
        merged |= meanings(_imported(tree, ast.unparse(base)) or f"{module}.{ast.unparse(base)}")
    text = ast.get_docstring(node) or ""
    for other in _AS_FOR.findall(text):
        merged |= meanings(other if "." in other else _imported(tree, other) or f"{module}.{other}")
    section = _ARGS.search(text)
    for entry in _ENTRY.finditer(section[1] if section else ""):
        merged[entry[1]] = " ".join(entry[2].split())
    return {name: text for name, text in merged.items() if name != "options"}


def _definition(target: str) -> tuple[str, ast.Module, ast.ClassDef | ast.FunctionDef] | None:
    """The name of the module that defines what is named, its tree, and the definition."""
    module, _, name = target.rpartition(".")
    path = _file_of(module)
    if path is None:
        return None
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, tree, node
    there = _imported(tree, name)
    if there is None and path.name == "__init__.py" and f"class {name}" not in path.read_text():
        # imported when it is first used, as flrl.backends does
        files = (file for file in sorted(path.parent.rglob("*.py")) if f"\nclass {name}" in file.read_text())
        there = next((".".join([module, *_parts(file, path.parent), name]) for file in files), None)
    return None if there is None else _definition(there)


def _imported(tree: ast.Module, name: str) -> str | None:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and not node.level and name in [a.asname or a.name for a in node.names]:
            return f"{node.module}.{name}"
    return None


def _parts(file: Path, above: Path) -> tuple[str, ...]:
    return file.relative_to(above).with_suffix("").parts


def _file_of(module: str) -> Path | None:
    """The file of a module; importing its package would import torch."""
    first, *rest = module.split(".")
    spec = find_spec(first) if first else None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.has_location and spec.origin else None  # not of what is frozen or built in
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _meant(argument: str, found: dict[str, dict[str, Path]]) -> tuple[str, str]:
    """The group and the choice of `strategy=scaffold`, `aggregator=krum` or `krum`; no choice for a group alone."""
    group, _, name = argument.partition("=")
    if group not in found and not name:
        having = [other for other in found if group in found[other]]
        if len(having) == 1:
            return having[0], group
    ending = [other for other in found if other.rpartition("/")[2] == group]
    return (ending[0] if group not in found and len(ending) == 1 else group), name


def _known(what: str, name: str, among: Any) -> None:
    if name not in among:
        near = get_close_matches(name, among, 1) or [
            f"{group}={name}" for group in among if isinstance(among[group], dict) and name in among[group]
        ]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{what} {name!r}: there is none; there are {', '.join(among)}{hint}")


def _list(group: str, paths: dict[str, Path], console: Console) -> None:
    console.print(f"[bold]{group}[/bold]")
    width = max(map(len, paths)) + 2
    for name, path in paths.items():
        console.print(f"  {name:{width}}{whole(next(iter(header(path)), ''))}", markup=False)
    console.print()


def _page(group: str, path: Path, roots: Sequence[Path], console: Console) -> None:
    console.print(f"[bold]{group}={path.stem}[/bold]")
    console.print("\n".join(header(path)), markup=False)
    values, taken = settings(path, roots, group), _taken(path, roots, group)
    objects = [values, *(value for value in values.values() if isinstance(value, dict))]
    targets = [value["_target_"] for value in objects if isinstance(value.get("_target_"), str)]
    for text in (text for target in dict.fromkeys(targets) for text in documentation(target)):
        console.print(f"\n{_ARGS.sub('', text).strip()}", markup=False)
    if values:
        console.print("\n[bold]settings[/bold]")
        groups = [key_of(name).rpartition("/")[2] for names in taken.values() for name in names]
        text = "\n".join(_with_meanings(values, groups))
        console.print(Syntax(text, "yaml", background_color="default") if console.is_terminal else text, markup=False)
    for what, names in taken.items():
        console.print(f"\n[bold]{what}[/bold]\n{' '.join(names)}")


def _with_meanings(values: Mapping[str, Any], groups: Sequence[str] = (), indent: str = "") -> Iterator[str]:
    """The lines of a yaml, the meaning of each key above it; then arguments that are neither there nor groups."""
    target = values.get("_target_")
    known = meanings(target) if isinstance(target, str) else {}
    for key, value in values.items():
        if key in known:
            yield f"{indent}# {known[key]}"
        if isinstance(value, dict) and "_target_" in value:
            yield f"{indent}{key}:"
            yield from _with_meanings(value, indent=indent + "  ")
        else:
            text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=1000).rstrip()
            yield from (indent + line for line in text.splitlines())
    also = {} if values.get("_partial_") else known  # a partial one's are given by what calls it
    yield from (f"{indent}# +{name}=...: {text}" for name, text in also.items() if name not in {*values, *groups})


def _taken(path: Path, roots: Sequence[Path], group: str) -> dict[str, list[str]]:
    """The choices that a choice takes in other groups, and those of its own that it joins, itself or by inclusion."""
    taken: dict[str, str] = {}
    joined: list[str] = []
    for entry in defaults_of(path):
        if isinstance(entry, dict):
            taken |= {str(name).removeprefix("override "): str(choice) for name, choice in entry.items()}
        elif entry != "_self_" and not entry.startswith("/"):
            entry = entry.partition("@")[0]
            joined.append(f"{group}={entry}")
            there = [file for root in roots if (file := root / group / f"{entry}.yaml").is_file()]
            for names in _taken(there[-1], roots, group).values() if there else ():
                taken = dict(name.split("=", 1) for name in names if "/" in name) | taken
    spelled = [
        f"{name.strip('/') if name.startswith('/') or '/' in name else f'{group}/{name}'}={choice}"
        for name, choice in taken.items()
        if "@" not in name
    ]
    return {what: names for what, names in (("includes", joined), ("takes", spelled)) if names}


def main() -> None:
    """The console script `flrl-info`."""
    try:
        with while_read():
            info(sys.argv[1:])
    except yaml.YAMLError as error:
        print(f"error: a yaml cannot be read: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
