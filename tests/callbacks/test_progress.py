import io
import json
import math
import os
import pty
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from flrl.callbacks import Progress
from flrl.callbacks.lines import below_here, round_line, sparkline
from flrl.callbacks.live import LiveTable
from flrl.callbacks.progress import said_if_slow
from flrl.types import ClientReport, RoundRecord


def record(clients: int, rejected: str | None = None) -> RoundRecord:
    reports = tuple(
        ClientReport(c, 10, 1, {"train/loss": 0.5 + c}, 400, rejected if c == 1 else None) for c in range(clients)
    )
    metrics = {
        "train/loss": 1.0,
        "test/loss": 0.43871,
        "test/accuracy": 0.88604,
        "clients/rejected": float(rejected is not None),
        "comm/up_bytes": 62800.0,
        "comm/down_bytes": 999.0,
        "time/round_s": 0.5,
    }
    return RoundRecord(3, metrics, "", reports)


def plain(text: str) -> str:
    return re.sub(r"\[/?[a-z ]*\]", "", text)


def test_a_round_is_one_line() -> None:
    assert plain(round_line(record(2), rounds=10, max_clients=4)) == (
        "round  3/10  train/loss 1.0000 (client 0 0.5000, client 1 1.5000)  test/loss 0.4387  test/accuracy 88.60 %  "
        "0.50 s  up 62.8 kB down 999 B"
    )


def test_many_clients_are_shown_as_a_range_and_rejected_ones_by_name() -> None:
    line = plain(round_line(record(6, rejected="update is not finite"), rounds=10, max_clients=4))
    assert "(5 clients, 0.5000 to 5.5000)" in line
    assert "rejected client 1: update is not finite" in line


def with_losses(*losses: float, rejected: int) -> RoundRecord:
    reports = tuple(
        ClientReport(c, 10, 1, {"train/loss": loss}, 400, "no" if c < rejected else None)
        for c, loss in enumerate(losses)
    )
    return RoundRecord(3, {"train/loss": 1.0}, "", reports)


@pytest.mark.parametrize(
    ("losses", "rejected", "shown"),
    [
        ((math.nan, 1.0, 2.0, 3.0), 1, " (3 clients, 1.0000 to 3.0000)"),
        ((9.0, 1.0, 2.0, 3.0), 1, " (3 clients, 1.0000 to 3.0000)"),
        ((1.0, math.nan, 2.0, 3.0), 0, " (3 clients, 1.0000 to 3.0000)"),
        ((math.nan, math.nan, math.nan), 0, ""),
        ((math.nan, math.nan, math.inf), 2, ""),
        ((math.nan, 1.0), 1, " (client 1 1.0000)"),
    ],
)
def test_the_range_is_of_accepted_clients_with_a_finite_loss(
    losses: tuple[float, ...], rejected: int, shown: str
) -> None:
    line = plain(round_line(with_losses(*losses, rejected=rejected), rounds=3, max_clients=2))
    assert line == f"round 3/3  train/loss 1.0000{shown}"


WHOLE = (
    "round  3/10  train/loss 1.0000 (client 0 0.5000, client 1 1.5000)  test/loss 0.4387  test/accuracy 88.60 %"
    "  0.50 s  up 62.8 kB down 999 B"
)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (None, WHOLE),
        (len(WHOLE), WHOLE),
        (len(WHOLE) - 1, WHOLE.removesuffix("  up 62.8 kB down 999 B")),
        (80, "round  3/10  train/loss 1.0000  test/loss 0.4387  test/accuracy 88.60 %  0.50 s"),
        (75, "round  3/10  train/loss 1.0000  test/loss 0.4387  test/accuracy 88.60 %"),
        (40, "round  3/10  train/loss 1.0000  test/lo…"),
    ],
)
def test_a_line_fits_the_terminal(width: int | None, line: str) -> None:
    assert plain(round_line(record(2), rounds=10, max_clients=4, width=width)) == line


def test_metrics_of_any_name_are_shown_but_not_those_of_training() -> None:
    reports = (ClientReport(0, 10, 1, {"train/loss": 1.0, "noise": 0.5}, 400),)
    metrics = {"noise": 0.5, "train/loss": 1.0, "val_loss": 2.0, "clients/loss_mean": 3.0}
    line = plain(round_line(RoundRecord(1, metrics, "", reports), rounds=1, max_clients=0))
    assert line == "round 1/1  train/loss 1.0000 (1 clients, 1.0000 to 1.0000)  val_loss 2.0000"


@pytest.mark.parametrize(("count", "text"), [(10, "10 B"), (1.2e6, "1.2 MB"), (3e12, "3000.0 GB")])
def test_bytes(count: float, text: str) -> None:
    shown = record(1)
    metrics = {**shown.metrics, "comm/up_bytes": count}
    assert f"up {text} " in round_line(RoundRecord(3, metrics, "", shown.reports), rounds=5, max_clients=4)


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([2.0, 2.0], "▁▁"),
        ([0.0, math.nan, 7.0, 3.0], "▁█▄"),
        ([1.0, 0.0, 0.0, 7.0, 0.0, 6.0], "▁█▇"),  # the 2nd, 4th and 6th
    ],
)
def test_a_sparkline(values: list[float], bars: str) -> None:
    assert sparkline(values, width=3) == bars


def test_the_live_table_has_ten_rounds_the_course_and_who_trains() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, color_system=None, force_terminal=False)
    table = LiveTable(console, rounds=20, metric="test/accuracy")
    for round in range(12):
        old = record(3, rejected="no" if round == 11 else None)
        rejected = float(round == 11)
        metrics = {**old.metrics, "clients/num": 3.0, "clients/rejected": rejected, "test/accuracy": round / 20}
        table.add(RoundRecord(round, metrics, "", old.reports))
    table.begin_round(12, [*range(3, 15)])
    table.client_done(4)
    console.print(table.picture())
    lines = file.getvalue().splitlines()
    assert lines[0].split() == ["round", "clients", "train/loss", "test/loss", "test/accuracy", "time", "up"]
    assert [line.split()[0] for line in lines[1:11]] == [str(round) for round in range(2, 12)]
    assert lines[10].split() == "11 3 -1 1.0000 0.4387 55.00 % 0.50 s 62.8 kB".split()
    assert lines[11].rstrip() == "test/accuracy  ▁▁▂▂▃▄▄▅▆▆▇█  55.00 %"
    assert "11/20" in lines[12]
    assert lines[13].startswith("round 12")
    assert "1/12" in lines[13]
    assert lines[14].rstrip() == "training, or to come: 3, 5, 6, 7, 8, 9, 10, 11 and 3 more"


def test_what_follows_the_table_begins_a_line_where_rich_sees_no_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, color_system=None, force_terminal=False)
    table = LiveTable(console, rounds=1, metric="test/accuracy")
    table.start()
    table.add(record(1))
    table.stop()
    console.print("result")
    assert file.getvalue().splitlines()[-2:] == ["test/accuracy  ▁  88.60 %", "result"]


@pytest.mark.parametrize(
    ("console", "compatible", "shown"), [("auto", "0", "plain"), ("rich", "0", "rich"), ("auto", "1", "rich")]
)
def test_a_launchers_terminal_is_a_file_unless_rich_is_asked_for(
    console: str, compatible: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TTY_COMPATIBLE": compatible, "TERM": "xterm-256color", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdout", terminal)
    progress = Progress()
    layout, data = SimpleNamespace(num_trainable=1), SimpleNamespace(num_clients=1, sizes=torch.ones(1))
    progress.setup(
        SimpleNamespace(console=console, name="run", seed=0, rounds=3, model=SimpleNamespace(layout=layout), data=data)
    )
    assert progress._form == shown
    if shown == "plain":
        progress.on_round_end(None, [record(2)])
        assert terminal.getvalue().splitlines()[1].endswith("0.50 s  up 62.8 kB down 999 B")


@pytest.mark.parametrize(("console", "text"), [("auto", "slow\n"), ("plain", "slow\n"), ("json", ""), ("quiet", "")])
def test_what_takes_long_is_said_to_people(console: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = SimpleNamespace(console=console)
    with said_if_slow("fast", run, after_s=60):
        pass
    with said_if_slow("slow", run, after_s=0):
        time.sleep(0.05)
    assert capsys.readouterr().out == text


def test_a_folder_below_the_working_directory_is_shown_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = (tmp_path / "a" / "b", tmp_path.parent / "b", tmp_path, Path("c"))
    assert [below_here(path) for path in paths] == [Path("a/b"), tmp_path.parent / "b", tmp_path, Path("c")]


def test_the_course_is_of_the_evaluation_where_the_metric_is_not_logged() -> None:
    table = LiveTable(Console(file=io.StringIO()), rounds=20, metric="nothing")
    table.add(record(1))
    assert (table._metric, table._curve) == ("test/loss", [0.43871])


def test_console_json_prints_the_rows_and_nothing_else(cli: Any) -> None:
    done = cli("console=json", "strategy.rounds=2", "hydra.run.dir=run", "logger=none")
    assert (done.out, done.err) == (Path("run/metrics.jsonl").read_text(), "")
    assert [json.loads(line)["round"] for line in done.out.splitlines()] == [1, 2]
    again = cli("resume=run", "strategy.rounds=3", "console=quiet")
    assert (again.code, again.out, again.err) == (0, "", "")


def test_quiet_leaves_warnings_each_once_and_errors(cli: Any) -> None:
    done = cli("-q", "strategy.rounds=1", "optimized_metric=accuracy", "hydra.run.dir=run", "logger=none")
    assert done.out == ""
    assert done.err.startswith("warning: optimized_metric=accuracy: nothing of that name is logged")
    assert len(done.err.splitlines()) == 1
    assert cli("-q", "console=fancy").err == "error: console=fancy: must be auto, rich, plain, json or quiet\n"
    assert cli("log_level=debug").err == "error: log_level=debug: must be INFO, WARNING or ERROR\n"
    assert cli("console=jsn").err.endswith(" or quiet; did you mean json?\n")
    silent = cli("-q", "strategy.rounds=1", "optimized_metric=accuracy", "hydra.run.dir=b", "log_level=ERROR")
    assert silent.err == ""
    assert "nothing of that name is logged" in Path("b/train.log").read_text()


@pytest.mark.parametrize("console", ["auto", "rich"])
def test_no_control_characters_in_files_and_pipes(console: str, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment asks for."""
    for name, value in {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    done = cli(f"console={console}", "strategy.rounds=3", "logger=none", "hydra.run.dir=run")
    assert [line.split()[0] for line in done.out.splitlines()] == [
        "train:",
        *["round"] * 3,
        "result",
        "digest",
        "folder",
    ]
    for text in (done.out, done.err, Path("run/train.log").read_text()):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


@pytest.mark.slow
def test_a_terminal_has_the_live_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    seen = bytearray()

    def read(descriptor: int) -> bytes:
        seen.extend(part := os.read(descriptor, 65536))
        return part

    command = ["-m", "flrl.train", "strategy.rounds=12", "logger=none", "hydra.run.dir=run"]
    assert pty.spawn([sys.executable, *command], read) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode()).replace("\r", "")
    last = text[text.rindex("clients  train/loss") :]
    rows = [line.split()[0] for line in last.splitlines()[1:11]]
    assert rows == [str(round) for round in range(3, 13)]
    assert "\ntest/accuracy  ▁" in last
    assert "\nfolder  " in last
