import io
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
    line = plain(round_line(record(5, rejected="update is not finite"), rounds=10, max_clients=4))
    assert "(5 clients, 0.5000 to 4.5000)" in line
    assert "rejected client 1: update is not finite" in line


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
