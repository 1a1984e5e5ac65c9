"""The README's own examples run as they stand, and so does the one of docs/strategies.md."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks_of(text: str) -> list[tuple[str, str]]:
    """The language and the content of each block of code."""
    return re.findall(r"```(\w*)\n(.*?)```", text, flags=re.S)


def write_files(page: str, folder: Path) -> None:
    """Every block whose first line names a file becomes that file."""
    for _, text in blocks_of(page):
        first, _, rest = text.partition("\n")
        if re.fullmatch(r"# [\w/]+\.(py|yaml)", first):
            path = folder / first.removeprefix("# ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(rest)


EXAMPLES = {
    "Your own model": "README.md",
    "Your own data": "README.md",
    "Your own strategy": "README.md",
    "Write your own": "docs/strategies.md",
}


@pytest.mark.parametrize("section", EXAMPLES)
def test_extensions_are_short_and_run(section: str, cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / EXAMPLES[section]).read_text()
    write_files(page, tmp_path)
    text = page.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = dict(reversed(blocks_of(text)))
    assert len([line for line in blocks["python"].splitlines() if line]) < 30
    command = blocks[""].strip()
    assert command.startswith("PYTHONPATH=. flrl-train ")
    monkeypatch.syspath_prepend(str(tmp_path))
    done = cli(*command.split()[2:], "hydra.run.dir=run", "strategy.rounds=3", "partition.num_clients=4")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test/loss"] < rows[0]["test/loss"]


def test_the_two_commands_are_at_the_top() -> None:
    first = blocks_of(README)[0][1].splitlines()
    assert first == [
        "pip install -e . && python -m flrl.train +experiment=mnist_fedavg",
        'pip install -e ".[dev]" && pytest',
    ]


def test_links_and_commands_name_what_exists() -> None:
    root = Path(__file__).parents[1]
    for page in [root / "README.md", *(root / "docs").glob("*.md"), root / "outputs" / "README.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), (page.name, link)
    selections = [s.split(" -k ") for s in re.findall(r"`pytest (tests[^`]+)`", README)]
    assert len(selections) >= 5
    for path, *words in selections:
        files = [root / path] if path.endswith(".py") else sorted((root / path).rglob("test_*.py"))
        names = re.findall(r"def (test_\w+)", "".join(file.read_text() for file in files))
        assert [name for name in names if not words or words[0] in name], (path, words)


def test_every_choice_of_the_table_exists() -> None:
    conf = Path(__file__).parents[1] / "conf"
    for group in ("strategy", "model", "trainer"):
        line = next(line for line in README.splitlines() if line.startswith(f"| `{group}`"))
        for choice in (path.stem for path in (conf / group).glob("*.yaml")):
            assert choice in line, (group, choice)
