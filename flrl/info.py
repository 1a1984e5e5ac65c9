"""What there is to choose: `python -m flrl.info`, `... strategy` or `... strategy=scaffold`.

Lines come from the first comment of each choice's yaml, pages from that yaml and from the docstrings of what it names.
"""

import ast
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.syntax import Syntax

from flrl.cli.arguments import config_dirs
from flrl.cli.groups import BASE, defaults_of
from flrl.cli.installed import installed_dirs
from flrl.config import CONF_DIR

_NOT_SHOWN = (BASE, "hydra", "paths", "debug")


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
    found = choices(roots)
    if not wanted:
        for group in found:
            _list(group, found[group], console)
    for argument in wanted:
        group, _, name = argument.partition("=")
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
                merged |= settings(there[-1], roots, group)
    return merged | {key: value for key, value in content.items() if key != "defaults"}


def documentation(target: str) -> list[str]:
    """The docstrings of a module and of what is named in it, for `flrl.strategies.Scaffold`; nothing is imported."""
    module, _, name = target.rpartition(".")
    path = _file_of(module)
    if path is None:
        return []
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return [text for text in (ast.get_docstring(tree), ast.get_docstring(node)) if text]
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return documentation(f"{node.module}.{name}")
    return []


def _file_of(module: str) -> Path | None:
    """The file of a module; importing its package would import torch."""
    first, *rest = module.split(".")
    spec = find_spec(first) if first else None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder).joinpath(*rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _known(what: str, name: str, among: Any) -> None:
    if name not in among:
        near = get_close_matches(name, among, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{what} {name!r}: there is none; there are {', '.join(among)}{hint}")


def _list(group: str, paths: dict[str, Path], console: Console) -> None:
    console.print(f"[bold]{group}[/bold]")
    width = max(map(len, paths)) + 2
    for name, path in paths.items():
        console.print(f"  {name:{width}}{next(iter(header(path)), '')}", markup=False)
    console.print()


def _page(group: str, path: Path, roots: Sequence[Path], console: Console) -> None:
    console.print(f"[bold]{group}={path.stem}[/bold]")
    console.print("\n".join(header(path)), markup=False)
    values = settings(path, roots, group)
    targets = [values["_target_"]] if isinstance(values.get("_target_"), str) else []
    for text in (text for target in targets for text in documentation(target)):
        console.print(f"\n{text}", markup=False)
    console.print("\n[bold]settings[/bold]")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
    console.print(Syntax(text, "yaml", background_color="default") if console.is_terminal else text, markup=False)


def main() -> None:
    """The console script `flrl-info`."""
    try:
        info(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
