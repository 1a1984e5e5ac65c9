"""Lines of code of every strategy, without docstrings, comments and blank lines.

python -m tests.strategies.lines        writes the table in docs/strategies.md
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import yaml

from flrl.config import CONF_DIR

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "strategies.md"
FOLDER = ROOT / "flrl" / "strategies"
TITLE, END = "## Lines of code", "\n## "
LIMITS = {"fedprox": 25, "scaffold": 60}
LARGEST = 120
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines_of_code(source: str) -> int:
    """The lines of a module on which there is code.

    >>> lines_of_code('# a\\n"Doc."\\n\\nx = 1  # one\\ny = (\\n    2,\\n)\\n')
    4
    """
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node.body[0] for node in ast.walk(ast.parse(source)) if isinstance(node, kinds) and node.body]
    strings = [node for node in documented if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    left_out = {line for node in strings for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    used = {line for t in tokens if t.type not in NO_CODE for line in range(t.start[0], t.end[0] + 1)}
    return len(used - left_out)


def target_of(name: str) -> str:
    """The class that `conf/strategy/NAME.yaml` names, or the yaml that it begins with."""
    found = yaml.safe_load((CONF_DIR / "strategy" / f"{name}.yaml").read_text())
    bases = [entry for entry in found["defaults"] if isinstance(entry, str) and entry != "_self_"]
    return str(found["_target_"]) if "_target_" in found else target_of(bases[0].rpartition("/")[2].partition("@")[0])


def module_of(target: str) -> Path:
    """The file in which a class of `flrl.strategies` stands."""
    name = target.rpartition(".")[2]
    return next(path for path in sorted(FOLDER.glob("*.py")) if re.search(rf"^class {name}\b", path.read_text(), re.M))


def lines_of(text: str) -> int:
    """The lines of a yaml that are neither blank nor comments."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())


def counted() -> dict[str, tuple[Path, int, int]]:
    """By strategy: its class's file, the lines of code in that, and the lines of its yaml."""
    found = {}
    for path in sorted((CONF_DIR / "strategy").glob("*.yaml")):
        module = module_of(target_of(path.stem))
        found[path.stem] = module, lines_of_code(module.read_text()), lines_of(path.read_text())
    return found


def section() -> str:
    """The section of the page: title, what is counted, table."""
    rows = counted()
    lines = [
        TITLE,
        "",
        "Without docstrings, comments and blank lines; `python -m tests.strategies.lines` writes this table.",
        "",
        "| strategy | file | lines | lines of its yaml |",
        "|---|---|---:|---:|",
    ]
    for name, (path, number, of_yaml) in sorted(rows.items(), key=lambda row: (row[1][1], row[1][0].stem, row[0])):
        own = path.stem == name or path.stem not in rows
        lines.append(f"| `{name}` | `{path.name}` | {number if own else ''} | {of_yaml} |")
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with the section as it should be, at its place or at the end."""
    before, _, after = page.partition(TITLE)
    rest = after.partition(END)[2]
    return before.rstrip("\n") + "\n\n" + section() + (END + rest if rest else "")


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
