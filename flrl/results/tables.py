"""The comparison of groups as a table: for the terminal, and as CSV, Markdown and LaTeX."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from flrl.config import percent
from flrl.results.statistics import Difference
from flrl.runs.rows import replace_text

if TYPE_CHECKING:
    from flrl.results.comparing import Options

_ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {"\\": r"\textbackslash{}"}


def shown(table: pd.DataFrame, options: "Options") -> list[list[str]]:
    """The table as text: a row of titles, and a row for each group."""
    scale, digits = (100, 2) if percent(options.metric) else (1, 4)

    def number(value: float) -> str:
        return "" if math.isnan(value) else f"{scale * value:.{digits}f}"

    titles = ["group", "runs", options.metric + (" (%)" if scale == 100 else ""), "95 % interval", "seconds"]
    if options.target is not None:
        to = f"{scale * options.target:g}" + (" %" if scale == 100 else "")
        titles += [f"reached {to}", "rounds to it", "MB to it", "seconds to it"]
    virtual = "virtual_seconds_to_target" in table
    titles += ["virtual seconds to it"] if virtual else []
    found = [titles]
    for row in table.to_dict("records"):
        mean = number(row["mean"]) + ("" if math.isnan(row["std"]) else f" ± {number(row['std'])}")
        interval = "" if math.isnan(row["low"]) else f"{number(row['low'])} to {number(row['high'])}"
        cells = [str(row["group"]), str(row["runs"]), mean, interval, f"{row['seconds']:.1f}"]
        if options.target is not None:
            spent = [(row["rounds_to_target"], 1), (row["bytes_to_target"], 1e6), (row["seconds_to_target"], 1)]
            spent += [(row["virtual_seconds_to_target"], 1)] if virtual else []
            cells += [f"{row['reached']} of {row['runs']}"]
            cells += ["" if math.isnan(value) else _rounded(value / unit) for value, unit in spent]
        found.append(cells)
    return found


def _rounded(value: float) -> str:
    """With one digit after the point, small values with three significant ones."""
    return f"{value:.1f}" if value >= 10 or value == int(value) else f"{value:.3g}"


def sentences(tested: Sequence[Difference], options: "Options") -> list[str]:
    """A line for each pair of groups."""
    scale, unit = (100, " points") if percent(options.metric) else (1, "")
    lines = []
    for pair in tested:
        line = f"{pair.one} - {pair.other}: {scale * pair.mean:+.4g}{unit}, {pair.verdict}"
        if not math.isnan(pair.p):
            how = "the runs cannot be paired" if pair.test == "Welch's t" else f"{pair.n} pairs"
            how += f", {pair.alone} runs have no partner" if pair.alone else ""
            line += f" ({pair.test}, {how}, p = {pair.p:.3g}, {pair.corrected:.3g} after Holm's correction)"
        lines.append(line)
    return lines


def show(table: pd.DataFrame, tested: Sequence[Difference], options: "Options", console: Console) -> None:
    """Print the table and the tests."""
    titles, *rows = shown(table, options)
    for part in [slice(1, 5), slice(5, None)][: 1 + (len(titles) > 5)]:
        drawn = Table(titles[0], *titles[part], box=box.SIMPLE_HEAD)
        for column in drawn.columns[1:]:
            column.justify = "right"
        for row in rows:
            drawn.add_row(row[0], *row[part])
        console.print(drawn)
    for line in sentences(tested, options):
        console.print(line, markup=False)


def write(
    table: pd.DataFrame, tested: Sequence[Difference], notes: Sequence[str], options: "Options", out: Path
) -> None:
    """Write `table.csv`, `tests.csv`, `table.md` and `table.tex` into a folder."""
    replace_text(out / "table.csv", [table.to_csv(index=False)])
    columns = ["one", "other", "mean", "test", "n", "alone", "p", "corrected", "verdict"]
    rows: list[dict[str, Any]] = [{name: getattr(pair, name) for name in columns} for pair in tested]
    replace_text(out / "tests.csv", [pd.DataFrame(rows, columns=columns).to_csv(index=False)])
    replace_text(out / "table.md", [markdown(table, [*sentences(tested, options), *notes], options)])
    replace_text(out / "table.tex", [latex(table, options)])


def markdown(table: pd.DataFrame, notes: Sequence[str], options: "Options") -> str:
    """The table and what is said below it as Markdown."""
    titles, *rows = ([cell.replace("|", "\\|") for cell in row] for row in shown(table, options))
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + "\n\n" + "".join(f"- {line}\n" for line in notes)


def latex(table: pd.DataFrame, options: "Options") -> str:
    r"""The table as LaTeX, for `\usepackage{booktabs}`."""
    titles, *rows = ([_escaped(cell) for cell in row] for row in shown(table, options))
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule", " & ".join(titles) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(cell: str) -> str:
    return "".join(_ESCAPES.get(c, c) for c in cell).replace("±", r"$\pm$")
