"""Hooks of the site: pages made from conf, from docstrings and from files beside docs/, and links out of docs/.

`reference/conf/` has a page for each group of `conf/`, with the choices' yamls and their comments; `reference/python/`
a page for each package whose `__init__.py` exports names; `project/` what stands in the root of the repository.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from flrl.config import CONF_DIR
from flrl.info import choices, header

ROOT = Path(__file__).parents[1]
PYTHON = (
    "strategies", "aggregation", "transforms", "sampling", "trainers", "data", "models", "adversaries", "attacks",
    "callbacks", "backends", "evaluation", "seeding", "layout", "types",
)  # fmt: skip
PROJECT = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md", "citation": "CITATION.cff"}


def pages() -> Iterator[tuple[str, str]]:
    """Path and Markdown of every page that is made."""
    found = choices([CONF_DIR])
    for group in sorted({name.partition("/")[0] for name in found}):
        names = [name for name in found if name.partition("/")[0] == group]
        yield f"reference/conf/{group}.md", _group(group, {name: found[name] for name in names})
    for name in PYTHON:
        yield f"reference/python/{name}.md", f"# flrl.{name}\n\n::: flrl.{name}\n"
    for name, file in PROJECT.items():
        text = (ROOT / file).read_text()
        yield f"project/{name}.md", text if file.endswith(".md") else f"# How to cite\n\n```yaml\n{text}```\n"


def _group(group: str, found: dict[str, dict[str, Path]]) -> str:
    """A page with the choices of a group and of the groups below it."""
    parts = [f"# {group}"]
    for name, paths in found.items():
        parts += [f"## {name}"] if name != group else []
        for choice, path in paths.items():
            body = path.read_text().splitlines()
            lines = [line for line in body if not line.startswith("# @package")]
            settings = "\n".join(lines[len(header(path)) :]).strip()
            parts.append(f"### {name}={choice}")
            parts.append("\n".join(_prose(header(path))))
            parts += [f"```yaml\n{settings}\n```"] if settings else []
    return "\n\n".join(parts) + "\n"


def _prose(lines: list[str]) -> Iterator[str]:
    """A yaml's header as Markdown: commands, which are indented there, become code."""
    code = False
    for line in lines:
        if line.startswith("  ") != code:
            code = not code
            yield "\n```" if code else "```\n"
        yield line[2:] if code else re.sub(r"([<>*_])", r"\\\1", line)
    if code:
        yield "```"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and their places in the menu."""
    made = dict(pages())
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    config.nav = _filled(config.nav, list(made))
    return files


def _filled(nav: Any, made: list[str]) -> Any:
    """The menu, with the pages of a folder in the place of the folder's name."""
    if isinstance(nav, list):
        return [_filled(entry, made) for entry in nav]
    if isinstance(nav, dict):
        return {title: _filled(entry, made) for title, entry in nav.items()}
    return [path for path in made if path.startswith(nav)] if nav.endswith("/") else nav


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links to files outside of docs/ lose their link: the site holds the documentation alone."""
    if page.file.src_uri == "modules.md":
        markdown = markdown.replace("'][", "'\\]\\[")  # an attribute of a module there, no link
    return re.sub(r"\[([^\]]+)\]\((?:\.\./|docs/)[^)]+\)", r"\1", markdown)
