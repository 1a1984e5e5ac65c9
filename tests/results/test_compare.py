"""Comparisons of runs that are made by hand: every number of tables and tests is known."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from flrl.compare import main as compare_main
from flrl.results.comparing import Options, compare, costs, grouped, reached
from flrl.results.figures import figure_of
from flrl.results.run import frame, load, runs, setting
from flrl.results.statistics import Spread, differences, holm

CURVES = {  # test/accuracy of three rounds, for seeds 0, 1, 2
    "fedavg": ([0.2, 0.5, 0.7], [0.3, 0.6, 0.8], [0.2, 0.4, 0.6]),
    "fed_prox": ([0.3, 0.6, 0.8], [0.4, 0.7, 0.95], [0.3, 0.5, 0.75]),
}


def make(folder: Path, *, strategy: str, seed: int, values: list[float], **keys: Any) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    config = {"seed": seed, "strategy": {"rounds": len(values)}, **keys}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    overrides = [f"strategy={strategy}", f"seed={seed}", *(f"{key}={value}" for key, value in keys.items())]
    row = {"after_round": 0, "choices": {"strategy": strategy}, "overrides": overrides}
    (folder / "environments.jsonl").write_text(json.dumps(row) + "\n")
    costs = {"comm/up_bytes": 10, "comm/down_bytes": 20, "time/round_s": 0.5, "digest": f"{strategy}{seed}"}
    rows = [{"round": n, "test/accuracy": v, "test/loss": 1 - v, **costs} for n, v in enumerate(values, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    jobs = [(strategy, seed) for strategy in CURVES for seed in range(3)]
    for number, (strategy, seed) in enumerate(jobs):
        make(tmp_path / "sweep" / str(number), strategy=strategy, seed=seed, values=CURVES[strategy][seed])
    return tmp_path / "sweep"


def test_the_table_of_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compare([str(sweep), "target=0.7"])
    with (out / "table.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["group"], first["runs"], second["group"]) == ("fedavg", "3", "fed_prox")
    # 0.7, 0.8, 0.6: mean 0.7, deviation 0.1, and t(0.975, 2) = 4.302653 times 0.1 / sqrt(3) is 0.248414
    assert [float(first[name]) for name in ("mean", "std")] == pytest.approx([0.7, 0.1])
    assert [float(first[name]) for name in ("low", "high")] == pytest.approx([0.7 - 0.248414, 0.7 + 0.248414], abs=1e-6)
    assert (first["reached"], float(first["rounds_to_target"]), float(first["bytes_to_target"])) == ("2", 3.0, 90.0)
    assert [float(second[f"{name}_to_target"]) for name in ("rounds", "bytes", "seconds")] == pytest.approx(
        [8 / 3, 80, 4 / 3]
    )
    # differences 0.1, 0.15, 0.15: mean 0.4 / 3, t = 8 with 2 degrees of freedom
    with (out / "tests.csv").open() as file:
        (test,) = csv.DictReader(file)
    assert (test["test"], test["n"], test["verdict"]) == ("paired t", "3", "fedavg is lower")
    assert float(test["mean"]) == pytest.approx(-0.4 / 3)
    assert float(test["p"]) == pytest.approx(1 - 8 / math.sqrt(8**2 + 2), rel=1e-6)  # the t distribution with 2 degrees
    printed = capsys.readouterr().out
    assert "70.00 ± 10.00" in printed
    assert "fedavg - fed_prox: -13.33 points, fedavg is lower (paired t, n = 3, p = 0.0153, 0.0153 after" in printed
    kinds = {path.name for path in out.iterdir()}
    assert kinds == {"table.csv", "table.md", "table.tex", "tests.csv"} | {
        f"by_{axis}.{kind}" for axis in ("round", "bytes", "seconds") for kind in ("pdf", "png")
    }


def test_the_table_as_latex_and_markdown(sweep: Path) -> None:
    out = compare([str(sweep), "group_by=strategy", f"out={sweep / 'own'}"])
    assert (out / "table.tex").read_text() == (
        "\\begin{tabular}{lrrrr}\n\\toprule\n"
        "group & runs & test/accuracy (\\%) & 95 \\% interval & seconds \\\\\n\\midrule\n"
        "fedavg & 3 & 70.00 $\\pm$ 10.00 & 45.16 to 94.84 & 1.5 \\\\\n"
        "fed\\_prox & 3 & 83.33 $\\pm$ 10.41 & 57.48 to 109.19 & 1.5 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
    lines = (out / "table.md").read_text().splitlines()
    assert lines[2] == "| fedavg | 3 | 70.00 ± 10.00 | 45.16 to 94.84 | 1.5 |"


def test_a_loss_reaches_its_target_from_above(sweep: Path) -> None:
    run = load(sweep / "0")  # losses 0.8, 0.5, 0.3
    assert reached(run, Options(metric="test/loss", target=0.5)) == {"rounds": 2.0, "bytes": 60.0, "seconds": 1.0}
    assert reached(run, Options(metric="test/loss", target=0.2)) is None
    assert costs(run.metrics)["bytes"].tolist() == [30, 60, 90]


def test_runs_are_paired_by_seed_and_by_what_else_differs(tmp_path: Path) -> None:
    for number, (strategy, lr, seed) in enumerate([(s, lr, n) for s in "ab" for lr in (1, 2) for n in (0, 1)]):
        value = 0.1 * lr + 0.01 * seed + (0.02 if strategy == "b" else 0)
        make(tmp_path / str(number), strategy=strategy, seed=seed, values=[value], lr=lr)
    groups, _ = grouped(runs(tmp_path), Options(group_by="strategy"))
    assert [sorted(group.runs) for group in groups] == [[f"seed={n} lr={lr}" for n in (0, 1) for lr in (1, 2)]] * 2
    assert [group.name for group in grouped(runs(tmp_path), Options())[0]] == ["a, 1", "a, 2", "b, 1", "b, 2"]
    make(tmp_path / "9", strategy="a", seed=0, values=[0.1], lr=1)
    with pytest.raises(ValueError, match=r"are the same in all that is compared"):
        grouped(runs(tmp_path), Options())


def test_tests_between_groups() -> None:
    same = {"0": 0.5, "1": 0.75}
    higher = {"0": 0.625, "1": 0.875}
    other = {"2": 0.1, "3": 0.2, "4": 0.3}
    found = {(pair.one, pair.other): pair for pair in differences({"a": same, "b": same, "c": higher, "d": other})}
    assert found["a", "b"].verdict == "equal in every pair"
    assert found["a", "c"].verdict == "the same difference in every pair"
    assert (found["a", "d"].test, found["a", "d"].n) == ("Welch's t", 5)
    of_means = (1 / 64, 1 / 300)  # the variances of the means, 0.625 and 0.2
    degrees = sum(of_means) ** 2 / (of_means[0] ** 2 + of_means[1] ** 2 / 2)
    assert found["a", "d"].p == pytest.approx(2 * stats.t.sf(0.425 / math.sqrt(sum(of_means)), degrees))
    assert found["a", "d"].verdict == "not significant"
    alone = differences({"a": {"0": 1.0}, "b": {"0": 2.0}})[0]
    assert (alone.verdict, alone.mean) == ("too few runs for a test", -1.0)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    spread = Spread.of([1.0])
    assert (spread.n, spread.mean, math.isnan(spread.std), math.isnan(spread.half)) == (1, 1.0, True, True)


def test_a_figure_has_a_line_and_a_band_for_each_group(sweep: Path) -> None:
    groups, _ = grouped(runs(sweep), Options(target=0.7))
    axes = figure_of(groups, Options(target=0.7), "bytes").axes[0]
    assert len(axes.collections) == 2
    line = axes.get_lines()[0]
    assert line.get_xdata().tolist() == pytest.approx([30e-6, 60e-6, 90e-6])
    assert line.get_ydata().tolist() == pytest.approx([70 / 3, 50, 70])
    assert len({line.get_linestyle() for line in axes.get_lines()[:2]}) == 2


def test_frames_and_settings(sweep: Path) -> None:
    rows = frame(runs(sweep), "strategy", "seed")
    assert (len(rows), list(rows.columns[:4])) == (18, ["run", "strategy", "seed", "round"])
    assert rows.groupby("strategy")["test/accuracy"].max().to_dict() == {"fed_prox": 0.95, "fedavg": 0.8}
    assert setting(load(sweep / "0"), "strategy.rounds") == 3
    with pytest.raises(ValueError, match=r"strateg: neither a group nor a key of .*; did you mean strategy\?"):
        setting(load(sweep / "0"), "strateg")


WRONG = {
    "": "no folder: flrl-compare outputs/multirun/NAME/DATE group_by=strategy",
    "nowhere": "nowhere: there is no run in this folder nor below it",
    "sweep grup_by=x": "grup_by=x: there is no option grup_by; did you mean group_by?",
    "sweep metric=test/acuracy": "metric=test/acuracy: no run has it; did you mean test/accuracy?",
    "sweep target=much": "target=much: must be a number",
    "sweep goal=up": "goal=up: must be max or min",
    "sweep group_by=stratgy": "stratgy: neither a group nor a key of sweep/0; did you mean strategy?",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.items(), ids=WRONG)
def test_wrong_arguments(cli: Any, sweep: Path, arguments: str, message: str) -> None:
    done = cli(*arguments.split(), main=compare_main)
    assert (done.code, done.err) == (1, f"error: {message}\n")
    assert not (sweep / "comparison").exists()


def test_help(cli: Any) -> None:
    done = cli("--help", main=compare_main)
    assert done.code == 0
    assert done.out.startswith("usage: flrl-compare FOLDER...")
