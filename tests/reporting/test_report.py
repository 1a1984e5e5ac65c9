"""The numbers of a report are those of the run's files; it is written after each run, and never in a run's way."""

import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flrl.data.datasets import digits
from flrl.evaluate import main as evaluate
from flrl.report import main as report
from flrl.reporting import Report, RunFiles
from flrl.reporting.charts import divided, seconds, traffic
from flrl.reporting.html import Html, page
from flrl.reporting.numbers import best
from tests.reporting.conftest import BAD, data_of, rows_of

SHORT = ("strategy.rounds=2", "logger=none", "hydra.run.dir=run")


def words_of(page: Path) -> str:
    """The page's text, without script, style and data."""
    body = re.sub(r"<(script|style).*?</\1>", " ", page.read_text("utf-8"), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_metrics_are_those_of_the_file(run: Path) -> None:
    data, rows = data_of(run / "report.html"), rows_of(run / "metrics.jsonl")
    assert data["x"] == [1, 2, 3, 4]
    assert len(data["metrics"]) == len(rows[0]) - 2
    for row, at in zip(rows, range(4), strict=True):
        assert {**{name: values[at] for name, values in data["metrics"].items()}} == {
            name: value for name, value in row.items() if name not in ("round", "digest")
        }


def test_every_metric_is_drawn_or_split_by_time(run: Path) -> None:
    data = data_of(run / "report.html")
    drawn = [s["metric"] for chart in data["charts"] for s in chart["series"] if "metric" in s]
    assert sorted(drawn) == sorted(name for name in data["metrics"] if not name.startswith("time/"))
    assert {chart["title"] for chart in data["charts"]} >= {
        "loss", "test/accuracy", "train/loss of clients", "training samples by client", "seconds by round",
        "bytes by round", "bytes until a round", "adversary/num", "found by the rule", "clients/global/accuracy",
    }  # fmt: skip


def test_the_text_has_result_command_digests_and_environment(run: Path) -> None:
    words, summary = words_of(run / "report.html"), json.loads((run / "summary.json").read_text())
    row = summary["metrics"]
    assert f"test/accuracy {row['test/accuracy']:.4f}" in words
    command = RunFiles.read(run).command
    assert command in words
    assert shlex.split(command)[:5] == ["python", "-m", "flrl.train", 'name="a<b>&c"', f'tags=["{BAD}"]']
    assert "hydra.run.dir" not in command
    for digest in (row["digest"] for row in rows_of(run / "metrics.jsonl")):
        assert digest in words
    assert summary["versions"]["torch"] in words
    assert summary["partition"] in words


def test_the_command_of_a_resumed_run_is_the_merged_one() -> None:
    rows = [
        {"command": "flrl-train --config-dir=mine", "overrides": ["strategy=fedprox", "seed=3", "strategy.rounds=2"]},
        {"command": "flrl-train", "overrides": ["resume=outputs/rz", "strategy.rounds=3", "name=a b"]},
    ]
    run = RunFiles(Path(), {}, [], {}, rows, [])
    assert run.command == (
        "python -m flrl.train --config-dir=mine strategy=fedprox seed=3 strategy.rounds=3 'name=a b'"
    )


def test_confusion_and_worst_clients_agree_with_the_evaluation(run: Path, tmp_path: Path, cli: Any) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    words, summary = words_of(run / "report.html"), json.loads((run / "summary.json").read_text())
    right = round(summary["metrics"]["test/accuracy"] * 359)
    assert f"359 test samples (all), {right} predicted rightly" in words
    assert cli(f"run={copy}", "clients=true", main=evaluate).code == 0
    rows = json.loads((copy / "evaluation.json").read_text())["per_client"]
    accuracies = sorted(
        (row["global/accuracy"], -row["num_samples"], row["client_id"]) for row in rows if row["num_samples"] <= 50
    )
    shown = re.findall(r"client (\d+): ([\d.]+) % of (\d+) samples", words)
    assert len(shown) == 6
    of = {int(client): (float(share), int(number)) for client, share, number in shown}
    for accuracy, samples, client in accuracies:
        assert of[client] == (pytest.approx(100 * accuracy, abs=0.051), -samples)
    assert [float(share) for _, share, _ in shown] == sorted(float(share) for _, share, _ in shown)
    assert 1 <= (run / "report.html").read_text("utf-8").count('<img src="data:image/png;base64,') <= 48


def test_a_row_of_the_confusion_matrix_is_a_class(run: Path) -> None:
    labels = digits().test.labels
    assert labels is not None
    section = (run / "report.html").read_text("utf-8").split('id="confusion"')[-1].split("</section>")[0]
    rows = [re.findall(r">(\d+|·)</td>", row) for row in section.split("<tr>")[2:]]
    assert [sum(int(cell) for cell in row if cell != "·") for row in rows] == np.bincount(labels).tolist()


def test_the_partition_is_that_of_the_run(run: Path) -> None:
    (chart,) = (chart for chart in data_of(run / "report.html")["charts"] if chart["xlabel"] == "client")
    counts = np.array([series["y"] for series in chart["series"]]).T
    with np.load(run / "partition.npz") as saved:
        assert counts.sum(axis=1).tolist() == saved["sizes"].tolist()
    assert counts.shape == (6, 10)
    assert sorted(chart["series"][3]) == ["name", "y"]


def test_who_misbehaved_is_listed(run: Path) -> None:
    malicious = {c for row in rows_of(run / "digests.jsonl") for c in row["malicious"]}
    assert len(malicious) == 1
    section = (run / "report.html").read_text("utf-8").split('id="adversaries"')[-1].split("</section>")[0]
    listed = re.findall(r'<th scope="row">(\d+)</th><td>(\d+)</td>', section)
    assert {int(client) for client, rounds in listed if rounds == "4"} == malicious


def test_what_a_user_has_named_stays_text(run: Path) -> None:
    page = (run / "report.html").read_text("utf-8")
    assert page.count("<script") == 2
    assert "<img src=x" not in page
    assert BAD in words_of(run / "report.html")
    assert "<title>a&lt;b&gt;&amp;c: report</title>" in page
    assert "https://" not in page
    assert page.count("http://") == page.count("http://www.w3.org/2000/svg") == 1


def test_no_string_of_the_data_ends_its_element() -> None:
    made = page("a", Html(), [], {"name": "</script><b>"})
    assert made.count("</script>") == 2
    assert '{"name":"\\u003c/script>\\u003cb>"}' in made


def test_quantiles_over_clients_by_hand(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    rows = [{"round": 1, "client_id": c, "train/loss": float(c), "rejected": None} for c in range(11)]
    rows += [{"round": 2, "client_id": 0, "train/loss": None}, {"round": 2, "client_id": 1, "train/loss": 7.0}]
    (copy / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = RunFiles.read(copy).client_quantiles()
    assert found == {"train/loss": {1: [0.0, 1.0, 2.5, 5.0, 7.5, 9.0, 10.0], 2: [7.0] * 7}}


def test_charts_by_hand() -> None:
    first, second = traffic({"comm/up_bytes": [3, None, 4]})
    assert (first["series"], second["series"]) == (
        [{"name": "comm/up_bytes", "metric": "comm/up_bytes"}],
        [{"name": "comm/up_bytes, summed", "y": [3, 3, 7]}],
    )
    spent = seconds({"time/round_s": [3.0, 1.0], "time/train_s": [1.0, 1.5]})
    assert spent == {"train": [1.0, 1.5], "evaluate": [2.0, 0.0]}
    assert divided([2, 3], [[2, 0], [1, 2]])["series"] == [
        {"name": "class 0", "y": [2, 1]}, {"name": "class 1", "y": [0, 2]},
    ]  # fmt: skip
    many = divided(list(range(1000)), None)
    assert (len(many["x"]), many["x"][0], many["x"][-1], many["series"][0]["y"]) == (200, 0, 999, many["x"])


def test_the_best_value_of_a_loss_is_the_lowest(run: Path) -> None:
    rows = [{"round": r, "digest": "", "test/loss": loss, "test/accuracy": a}
            for r, loss, a in ((1, 2.0, 0.5), (2, 1.0, 0.7), (3, 1.0, 0.7), (4, None, 0.6))]  # fmt: skip
    other = RunFiles(run, {}, rows, {}, [], [])
    assert (best(other, "test/loss"), best(other, "test/accuracy")) == ((1.0, 2), (0.7, 2))
    assert best(other, "test/nothing") is None


def test_a_long_run_is_thinned_and_says_so(run: Path, tmp_path: Path, cli: Any) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    row = rows_of(copy / "metrics.jsonl")[0]
    (copy / "metrics.jsonl").write_text("".join(json.dumps({**row, "round": r}) + "\n" for r in range(1, 2502)))
    (copy / "summary.json").unlink()
    done = cli(f"run={copy}", main=report)
    assert (done.code, done.out) == (0, f"report  {copy / 'report.html'}\n")
    data, words = data_of(copy / "report.html"), words_of(copy / "report.html")
    assert (len(data["x"]), data["x"][:2], data["x"][-1]) == (835, [1, 4], 2501)
    assert all(len(s["y"]) == 835 for c in data["charts"] if "x" not in c for s in c["series"] if "y" in s)
    assert "Charts show 835 of 2501 rounds" in words
    assert "The run has not finished: its last round is 2501 of 4." in words
    assert "Predictions are left out: there is no final model." in words


def test_every_run_writes_it_and_an_error_is_one_warning(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> str:
        raise RuntimeError("one line\nand another")

    with monkeypatch.context() as patch:
        patch.setattr("flrl.reporting.callback.run_page", fails)
        done = cli(*SHORT)
    assert (done.code, done.err) == (0, "warning: report.html is not written: RuntimeError: one line and another\n")
    before = {path.name for path in Path("run").iterdir()}
    digest = json.loads(Path("run/summary.json").read_text())["digest"]
    assert cli("resume=run").code == 0
    assert {path.name for path in Path("run").iterdir()} == before | {"report.html"}
    assert json.loads(Path("run/summary.json").read_text())["digest"] == digest
    words = words_of(Path("run/report.html"))
    assert data_of(Path("run/report.html"))["x"] == [1, 2]
    assert "Resumed after round 2." in words
    assert "report.html is not written: RuntimeError: one line and another" in words
    assert "python -m flrl.train strategy.rounds=2 logger=none" in words


def test_predictions_that_fail_are_left_out_by_name(
    run: Path, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("no such layer")

    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    monkeypatch.setattr("flrl.lightning.predicting.outputs_of", fails)
    done = cli(f"run={copy}", main=report)
    words = words_of(copy / "report.html")
    assert (done.code, done.err) == (0, "")
    assert "The confusion matrix is left out: RuntimeError: no such layer." in words
    assert "Predictions by client are left out: RuntimeError: no such layer." in words


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("fedper", "clients keep a part of the model for themselves"),
        pytest.param("fedmd public_samples=100", "there is no global model", marks=pytest.mark.slow),
    ],
)
def test_models_of_clients_are_not_taken_for_the_global_one(cli: Any, strategy: str, reason: str) -> None:
    done = cli(*SHORT, "model=mlp_2nn", *f"strategy={strategy}".split())
    assert done.code == 0, done.err
    assert f"The confusion matrix is left out: {reason}" in words_of(Path("run/report.html"))


def test_no_time_means_fewer_samples(run: Path, tmp_path: Path, cli: Any) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    assert cli(f"run={copy}", "seconds=0", main=report).code == 0
    words = words_of(copy / "report.html")
    assert "100 test samples (drawn by seed)" in words
    assert "of 1 clients" in words
    with pytest.raises(ValueError, match="at least 0"):
        Report(seconds=-1)


def test_a_sweep(sweep: Path) -> None:
    page, data = (sweep / "index.html").read_text("utf-8"), data_of(sweep / "index.html")
    assert re.findall(r'<a href="(\d/report.html)">', page) == [f"{job}/report.html" for job in range(3)]
    assert [run["name"] for run in data["runs"]] == [
        "0 strategy=fedavg",
        "1 strategy=fedprox",
        "2 strategy=centralized",
    ]
    for job, run in enumerate(data["runs"]):
        rows = rows_of(sweep / str(job) / "metrics.jsonl")
        assert (run["x"], run["metrics"]["test/loss"]) == ([1, 2, 3], [row["test/loss"] for row in rows])
        assert rows[-1]["digest"][:12] in page
    assert "What needs the model and the samples is left out" in words_of(sweep / "1" / "report.html")


def test_the_reference_is_the_centralised_run_or_the_one_that_is_named(sweep: Path, run: Path, cli: Any) -> None:
    assert cli(f"run={sweep / '0'}", f"reference={run}", main=report).code == 0
    words = words_of(sweep / "0" / "report.html")
    central = rows_of(sweep / "2" / "metrics.jsonl")[-1]["test/accuracy"]
    named = rows_of(run / "metrics.jsonl")[-1]["test/accuracy"]
    assert f"centralised, 2 of this sweep {central:.4f}".rstrip("0") in words
    assert f"reference {run} {named:.4f}".rstrip("0") in words
    assert "References" not in words_of(sweep / "2" / "report.html")


WRONG = {
    "run=nowhere": "run=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)",
    "sweep=nowhere": "sweep=nowhere: no run has completed a round there",
    "": "one of run=<folder of a run> and sweep=<folder of a sweep> is needed",
    "run=a sweep=b": "one of run=<folder of a run> and sweep=<folder of a sweep> is needed",
    "run=RUN reference=nowhere": (
        "reference=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)"
    ),
    "sweep=a reference=b": "reference=b: is for run=..., a sweep's runs are beside each other already",
    "run=RUN seconds=-1": "seconds=-1.0: must be at least 0",
    "run=RUN device=tpu": "device=tpu: must be cpu, cuda or cuda:N",
    "run=RUN swep=b": "swep=b: there is no such key; did you mean sweep?",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.items(), ids=WRONG)
def test_wrong_invocations_end_in_one_line(cli: Any, run: Path, arguments: str, message: str) -> None:
    before = (run / "report.html").read_bytes()
    done = cli(*arguments.replace("RUN", str(run)).split(), main=report)
    assert (done.code, done.err) == (1, f"error: {message}\n")
    assert (run / "report.html").read_bytes() == before
