import io
import math
import re

import pytest
from rich.console import Console

from flrl.callbacks.progress import Progress, round_line
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


def test_lines_in_a_terminal_have_its_width_and_in_a_file_all_there_is() -> None:
    progress = Progress()
    progress._run = type("Run", (), {"rounds": 10})()
    for terminal, length in ((True, 60), (False, len(WHOLE))):
        file = io.StringIO()
        progress._console = Console(
            file=file, force_terminal=terminal, width=60, soft_wrap=True, color_system=None, highlight=False
        )
        progress.on_round_end(type("State", (), {"round": 0})(), [record(2)])
        assert [len(line) for line in file.getvalue().splitlines()] == [length]


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


def test_the_bar_lives_in_terminals_only() -> None:
    progress = Progress()
    for terminal in (False, True):
        progress._console = Console(file=io.StringIO(), force_terminal=terminal)
        progress._run = type("Run", (), {"rounds": 5})()
        progress.on_fit_start(type("State", (), {"round": 2})(), [])
        progress.on_round_start(3, [0, 1])
        progress.on_client_end(record(1).reports[0])
        assert (progress._bar is not None) == terminal
        if progress._bar is not None:
            assert [(task.completed, task.total) for task in progress._bar.tasks] == [(2, 5), (1, 2)]
        progress.close()
        assert progress._bar is None
