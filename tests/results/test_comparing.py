"""`flrl-compare` on runs made by hand: groups, costs of a target, tables, figures, and what goes wrong."""

import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from flrl.compare import main
from flrl.results import runs
from flrl.results.comparing import Options, compare, costs, parsed, summary, to_target
from flrl.results.figures import curve, figure_of
from flrl.results.grouping import grouped
from flrl.results.statistics import Spread
from flrl.results.tables import latex, markdown
from tests.results.conftest import MakeRun

HALF = 4.302652729911275 * math.sqrt(0.0026 / 2) / math.sqrt(3)  # of 0.80, 0.82, 0.87: see test_statistics.py


def compared(*arguments: Any) -> str:
    """What is printed, on lines of any length."""
    text = io.StringIO()
    compare([str(argument) for argument in arguments], Console(file=text, width=200))
    return text.getvalue()


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table_in_the_terminal_and_in_files(sweep: Path) -> None:
    text = compared(sweep, "group_by=strategy", "target=0.85")
    low, high = f"{83 - 100 * HALF:.2f}", f"{83 + 100 * HALF:.2f}"
    assert ["fedavg", "3", "83.00", "±", "3.61", low, "to", high, "1.0"] in cells(text)
    # 0.87 crosses 0.85 after 1 + 35 / 37 rounds; 0.85 and 0.89 after 2 and after 1 + 25 / 29.
    assert ["fedavg", "1", "of", "3", "1.95", "0.000584", "0.973"] in cells(text)
    assert ["fedprox", "2", "of", "3", "1.93", "0.000579", "0.966"] in cells(text)
    assert (
        "fedavg - fedprox: -2 points, not significant (paired t, 3 pairs, p = 0.0742, 0.0742 after Holm's correction)\n"
    ) in text
    out = sweep / "comparison"
    assert text.endswith(f"tables and figures: {out}\n")
    table = pd.read_csv(out / "table.csv").set_index("group")
    assert table.loc["fedavg", ["runs", "mean", "std", "low", "high"]].tolist() == pytest.approx(
        [3, 0.83, math.sqrt(0.0026 / 2), 0.83 - HALF, 0.83 + HALF]
    )
    assert table.loc["fedprox", ["reached", "rounds_to_target", "bytes_to_target"]].tolist() == pytest.approx(
        [2, 1 + 27 / 29, 300 * (1 + 27 / 29)]
    )
    tests = pd.read_csv(out / "tests.csv").iloc[0]
    assert tests[["test", "n", "alone", "verdict"]].tolist() == ["paired t", 3, 0, "not significant"]
    assert tests["p"] == pytest.approx(1 - math.sqrt(12 / 14))
    page = (out / "table.md").read_text()
    assert page.startswith("| group | runs | test/accuracy (%) | 95 % interval | seconds | reached 85 % |")
    assert "- fedavg - fedprox: -2 points, not significant (paired t, 3 pairs" in page
    for name in ("by_round", "by_bytes", "by_seconds"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert not (out / "by_virtual_seconds.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_second_comparison_finds_no_run_in_the_first_one(sweep: Path) -> None:
    assert compared(sweep) == compared(sweep)


def test_virtual_seconds_are_those_of_the_rows() -> None:
    rows = pd.DataFrame({"time/virtual_s": [0.0, 2.5, 7.0], "time/round_s": [None, 0.1, 0.1]})
    assert costs(rows)["virtual_seconds"].tolist() == [0.0, 2.5, 7.0]
    assert "virtual_seconds" not in costs(rows[["time/round_s"]])


def test_what_it_costs_to_reach_a_target(make: MakeRun) -> None:
    """Rounds 1 and 3 are evaluated: 0.8 is three quarters of the way from 0.5 to 0.9."""
    run = make([0.5, None, 0.9, 0.85])
    assert to_target(run, Options(target=0.9)) == {"rounds": 3.0, "bytes": 900.0, "seconds": 1.5}
    assert to_target(run, Options(target=0.8)) == pytest.approx({"rounds": 2.5, "bytes": 750.0, "seconds": 1.25})
    assert to_target(run, Options(target=0.5)) == {"rounds": 1.0, "bytes": 300.0, "seconds": 0.5}
    assert to_target(run, Options(target=0.91)) is None
    loss = make([2.0, 1.0, 0.5], metric="test/loss")
    assert to_target(loss, Options(metric="test/loss", target=1.25)) == {
        "rounds": 1.75,
        "bytes": 525.0,
        "seconds": 0.875,
    }
    assert to_target(loss, Options(metric="test/loss", target=1.5, goal="max")) == {
        "rounds": 1.0,
        "bytes": 300.0,
        "seconds": 0.5,
    }


def test_costs_are_means_over_the_runs_that_reach_the_target(make: MakeRun) -> None:
    """After 1 round, and after 2.5, halfway between 0.1 and 0.9."""
    found = [make([0.9, 0.9, 0.9], seed=0), make([0.1, 0.1, 0.9], seed=1), make([0.1, 0.3, 0.1], seed=2)]
    table, _ = summary(grouped(found, None)[0], Options(target=0.5))
    row = table.iloc[0]
    assert (row["group"], row["reached"]) == ("all runs", 2)
    assert (row["rounds_to_target"], row["bytes_to_target"]) == pytest.approx((1.75, 525))
    assert row["mean"] == pytest.approx(1.9 / 3)  # the last round's values, whether it is the best one or not


def test_groups_are_what_the_overrides_differ_by(make: MakeRun) -> None:
    found = [
        make([0.5], seed=0, overrides=["model.lr=0.1"], model={"lr": 0.1}),
        make([0.5], seed=1, overrides=["model.lr=0.1"], model={"lr": 0.1}),
        make([0.5], seed=0, overrides=["model.lr=0.2"], model={"lr": 0.2}),
        make([0.5], seed=0, strategy="fedprox", overrides=["model.lr=0.1", "mu=3"], model={"lr": 0.1}, mu=3),
        make([0.5], seed=0, strategy="fedprox", overrides=["model.lr=0.1", "mu=4"], model={"lr": 0.1}, mu=4),
    ]
    groups, differing = grouped(found, None)
    names = ["fedavg, lr=0.1", "fedavg, lr=0.2", "fedprox, lr=0.1, mu=3", "fedprox, lr=0.1, mu=4"]
    assert ([group.name for group in groups], differing) == (names, [])
    assert [len(group.runs) for group in groups] == [2, 1, 1, 1]


def test_pairs_share_the_seed_and_all_else_that_varies_in_a_group(make: MakeRun) -> None:
    for strategy, shift in (("fedavg", 0.0), ("fedprox", 0.1)):
        for lr in (0.1, 0.2):
            for seed in (0, 1):
                make([lr + 0.1 * seed + shift], seed=seed, strategy=strategy, model={"lr": lr})
    groups, differing = grouped(runs(make([0.0], seed=9).folder.parent)[:-1], "strategy")
    assert [set(group.runs) for group in groups] == [
        {f"seed={seed} model.lr={lr}" for lr in (0.1, 0.2) for seed in (0, 1)}
    ] * 2
    assert differing == []
    _, (found,) = summary(groups, Options())
    assert found.verdict == "the same difference in every pair"
    assert found.mean == pytest.approx(-0.1)


@pytest.mark.usefixtures("undrawn")
def test_settings_that_come_with_a_group_do_not_hinder_pairs_but_are_named(make: MakeRun, tmp_path: Path) -> None:
    for seed in range(3):
        make([0.5 + 0.1 * seed], seed=seed, model={"lr": 0.1})
        make([0.5 + 0.1 * seed**2], seed=seed, strategy="fedprox", model={"lr": 0.2})
    text = compared(tmp_path / "sweep", "group_by=strategy")
    assert "paired t, 3 pairs" in text
    assert "note: the groups differ by more than what divides them: model.lr\n" in text
    assert "- the groups differ by more" in (tmp_path / "sweep" / "comparison" / "table.md").read_text()


@pytest.mark.usefixtures("undrawn")
def test_other_seeds_cannot_be_paired_and_it_is_said(make: MakeRun, tmp_path: Path) -> None:
    for seed, value in enumerate((0.0, 0.2, 0.3, 0.5)):
        make([value], seed=seed, strategy="fedavg" if seed < 2 else "fedprox")
    text = compared(tmp_path / "sweep", "group_by=strategy")
    assert (
        f"-30 points, not significant (Welch's t, the runs cannot be paired, p = {1 - math.sqrt(4.5 / 6.5):.3g}" in text
    )


@pytest.mark.usefixtures("undrawn")
def test_runs_that_have_not_finished_or_lack_the_metric_are_left_out_and_named(make: MakeRun, tmp_path: Path) -> None:
    make([0.5, 0.6])
    make([0.9], seed=1, finished=False)
    other = make([0.9], seed=2, metric="test/loss")
    text = compared(tmp_path / "sweep")
    assert ["all", "runs", "1", "60.00", "1.0"] in cells(text)
    assert f"note: left out, not finished: {tmp_path / 'sweep' / '1'}: 1 of 1 rounds\n" in text
    assert f"note: left out, without test/accuracy: {other.folder}\n" in text


@pytest.mark.usefixtures("undrawn")
def test_every_failed_job_is_a_note_with_folder_and_reason(make: MakeRun, tmp_path: Path) -> None:
    make([0.5])
    (make([0.5], seed=1, finished=False).folder / "error.txt").write_text("old\nafter round 1: ValueError: nan\n")
    never = tmp_path / "sweep" / "7"
    never.mkdir()
    (never / "error.txt").write_text("model.optimizer: Invalid learning rate: -1\n")
    notes = [line for line in compared(tmp_path / "sweep").splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: left out, not finished: {tmp_path / 'sweep' / '1'}: 1 of 1 rounds; after round 1: ValueError: nan",
        f"note: left out, failed: {never}: model.optimizer: Invalid learning rate: -1",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_target_in_per_cent_is_asked_about(make: MakeRun, tmp_path: Path) -> None:
    make([0.5, 0.9])
    loss = make([2.5, 0.9], seed=1, metric="test/loss").folder
    asked = "note: target=85: all values of test/accuracy are from 0 to 1: did you mean 0.85?"
    assert asked in compared(tmp_path / "sweep", "target=85")
    assert "did you mean" not in compared(tmp_path / "sweep", "target=0.85")
    assert "did you mean" not in compared(loss, "target=2", "metric=test/loss")


def test_the_same_run_twice_is_refused(make: MakeRun) -> None:
    one, other = make([0.5]), make([0.5], logger={"csv": 1})
    with pytest.raises(ValueError, match=f"{one.folder} and {other.folder} are the same run twice"):
        grouped([one, other], None)


LATEX = r"""\begin{tabular}{lrrrr}
\toprule
group & runs & test/f1\_score & 95 \% interval & seconds \\
\midrule
my\_fedavg \& 50\% & 2 & 0.6000 $\pm$ 0.1414 & -0.6706 to 1.8706 & 0.5 \\
\{x\}\#1\textasciitilde{}\textasciicircum{}\textbackslash{}\$ & 1 & 0.7000 &  & 0.5 \\
\bottomrule
\end{tabular}
"""


def test_latex_is_escaped(make: MakeRun) -> None:
    options = Options(metric="test/f1_score")
    found = [
        make([value], seed=seed, strategy="my_fedavg & 50%", metric=options.metric)
        for seed, value in ((0, 0.5), (1, 0.7))
    ]
    found.append(make([0.7], strategy="{x}#1~^\\$", metric=options.metric))
    table, _ = summary(grouped(found, "strategy")[0], options)
    assert latex(table, options) == LATEX
    assert "| my_fedavg & 50% | 2 | 0.6000 ± 0.1414 | -0.6706 to 1.8706 | 0.5 |" in markdown(table, [], options)


def test_curves_and_bands(make: MakeRun) -> None:
    found = [make([0.1, 0.80], seed=0), make([0.2, 0.82], seed=1), make([0.3, 0.87], seed=2)]
    (group,), _ = grouped(found, None)
    x, middle, low, high = curve(group, Options(), "bytes")
    assert x.tolist() == [0.0003, 0.0006]
    assert middle.tolist() == pytest.approx([20, 83])
    assert (high - middle).tolist() == pytest.approx([100 * Spread.of([0.1, 0.2, 0.3]).half, 100 * HALF])
    assert (middle - low).tolist() == pytest.approx((high - middle).tolist())
    assert curve(group, Options(), "round")[0].tolist() == [1, 2]
    assert curve(group, Options(), "seconds")[0].tolist() == [0.5, 1.0]
    (two,), _ = grouped(found[:2], None)
    _, _, low, high = curve(two, Options(), "round")
    assert (low.tolist(), high.tolist()) == (pytest.approx([10, 80]), pytest.approx([20, 82]))


def test_lines_differ_without_colour(make: MakeRun) -> None:
    found = [make([0.1, 0.2], strategy=f"s{number}") for number in range(7)]
    (axes,) = figure_of(grouped(found, "strategy")[0], Options(target=0.15), "round").axes
    lines = axes.get_lines()[:7]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 7
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"s{number}" for number in range(7)]
    assert list(axes.get_lines()[7].get_ydata()) == [15, 15]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "test/accuracy (%)")


def test_options() -> None:
    folders, options = parsed(["a", "group_by=strategy,seed", "b", "metric=test/loss", "target=1e-1", "out=x"])
    assert folders == [Path("a"), Path("b")]
    assert options == Options(group_by="strategy,seed", metric="test/loss", target=0.1, out="x")
    assert options.lower_is_better
    assert not Options().lower_is_better


WRONG = {
    "SWEEP group_bye=strategy": "group_bye=strategy: there is no option group_bye; did you mean group_by?",
    "SWEEP x=1": "x=1: there is no option x; group_by, metric, target, goal, out",
    "SWEEP target=high": "target=high: must be a number",
    "SWEEP goal=up": "goal=up: must be max or min",
    "SWEEP group_by=stratgy": "group_by=stratgy: neither a group nor a key of SWEEP/0; did you mean strategy?",
    "SWEEP group_by=rounds": "group_by=rounds: neither a group nor a key of SWEEP/0; did you mean strategy.rounds?",
    "SWEEP metric=test/acuracy": "metric=test/acuracy: no finished run has it; did you mean test/accuracy?",
    "SWEEP metric=xyz": (
        "metric=xyz: no finished run has it; there are: comm/down_bytes, comm/up_bytes, test/accuracy, time/round_s"
    ),
    "nowhere": "nowhere: there is no run in this folder nor below it",
    "": "no folder: flrl-compare outputs/multirun/NAME/DATE group_by=strategy",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.items(), ids=WRONG)
def test_wrong_invocations(cli: Any, sweep: Path, arguments: str, message: str) -> None:
    done = cli(*arguments.replace("SWEEP", str(sweep)).split(), main=main)
    assert (done.code, done.out, done.err) == (1, "", f"error: {message.replace('SWEEP', str(sweep))}\n")
    assert not (sweep / "comparison").exists()


def test_nothing_has_finished(cli: Any, make: MakeRun) -> None:
    folder = make([0.5], finished=False).folder
    assert cli(str(folder), main=main).err == "error: none of the 1 runs has finished\n"


def test_help(cli: Any) -> None:
    done = cli("--help", main=main)
    assert (done.code, done.out.splitlines()[0][:31]) == (0, "usage: flrl-compare FOLDER... [")
