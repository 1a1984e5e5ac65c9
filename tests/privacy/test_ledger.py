"""The ledger: charged before release, never lower after a crash."""

from pathlib import Path
from typing import Any

import pytest

from flrl.callbacks import PrivacyLedger
from flrl.callbacks.base import RunInfo
from flrl.errors import DamagedError
from flrl.privacy import Ledger, charges
from flrl.types import RoundRecord, ServerState
from tests.privacy.test_spending import Counted, spending

STATE: Any = object.__new__(ServerState)


def started(folder: Path, rows: Any = (), *, secure: bool = False, by_client: bool = False, **privacy: Any) -> Any:
    mechanism = Counted(1.0, by_client=by_client)
    mechanism.secure_noise = secure
    ledger = PrivacyLedger(spending(mechanism, accountant="rdp", **privacy), rows)
    info: Any = object.__new__(RunInfo)
    object.__setattr__(info, "folder", folder)
    ledger.setup(info)
    ledger.on_fit_start(STATE, [])
    return ledger


def test_a_round_is_on_the_disk_before_its_clients_train(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    ledger.on_round_start(1, [0, 2])
    assert (tmp_path / "privacy.jsonl").read_text() == '{"round": 1}\n'
    ledger.on_round_start(2, [])
    assert charges(tmp_path, 2) == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize(("secure", "releases"), [(False, 3), (True, 4)])
def test_a_repeated_round_counts_once_or_again_with_secure_noise(tmp_path: Path, secure: bool, releases: int) -> None:
    ledger = started(tmp_path, secure=secure)
    for round in (1, 2, 3):
        ledger.on_round_start(round, [0])
    before = ledger.numbers(3)["privacy/epsilon"]
    again = started(tmp_path, charges(tmp_path, 1), secure=secure)  # killed, with a checkpoint of round 1
    assert again.numbers(1)["privacy/epsilon"] == before
    again.on_round_start(2, [0])
    assert again.numbers(2)["privacy/epsilon"] >= before
    assert again.summary()["privacy"]["releases"] == releases
    assert len(charges(tmp_path, 2)) == 4


def test_clients_are_counted_by_the_rounds_that_they_took_part_in(tmp_path: Path) -> None:
    ledger = started(tmp_path, by_client=True)
    for round, cohort in ((1, [0, 1]), (2, [1]), (2, [1, 2])):
        ledger.on_round_start(round, cohort)
    assert ledger._charged.participations.tolist() == [1, 2, 1]
    assert charges(tmp_path, 2)[2] == {"round": 2, "clients": [1, 2]}


def test_it_stops_before_the_budget_but_not_a_repeated_round(tmp_path: Path) -> None:
    budget = spending(Counted(1.0), accountant="rdp").exact(spending(Counted(1.0)).planned(2))
    ledger = started(tmp_path, epsilon=budget)
    assert ledger.should_stop([]) is None
    ledger.on_round_start(1, [])
    ledger.on_round_start(2, [])
    history = [RoundRecord(round, {}, "") for round in (1, 2)]
    assert ledger.should_stop(history[:1]) is None
    assert ledger.should_stop(history) == f"privacy.epsilon={budget} would be passed in round 3"
    assert [ledger.is_last(round) for round in (1, 2)] == [False, True]


def test_a_budget_that_no_round_keeps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"privacy\.epsilon=0\.1: the first round passes it \(epsilon 2\.1"):
        PrivacyLedger(spending(Counted(1.0), epsilon=0.1, accountant="rdp"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"round": 1}\n', "has nothing of round 2"),
        ('{"round": 1}\n{"ro\n{"round": 2}\n', "is damaged in line 2"),
        ('{"round": 1}\n{"round": 2, "clients": null}\n', "is damaged in row 2: round and clients must be whole"),
        ('{"round": 1, "clients": ["a"]}\n{"round": 2}\n', "is damaged in row 1"),
        ('{"round": true}\n{"round": 2}\n', "is damaged in row 1"),
        (None, "has nothing of round 1"),
    ],
)
def test_a_ledger_without_what_was_released_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "privacy.jsonl").write_text(text)
    with pytest.raises(DamagedError, match=message):
        charges(tmp_path, 2)


def test_a_charge_that_was_cut_off_was_never_released(tmp_path: Path) -> None:
    (tmp_path / "privacy.jsonl").write_text('{"round": 1}\n{"rou')
    rows = charges(tmp_path, 1)
    assert Ledger.begun(tmp_path, rows).charge(2, None) == {"round": 2}
    assert (tmp_path / "privacy.jsonl").read_text() == '{"round": 1}\n{"round": 2}\n'


@pytest.mark.parametrize("row", [{"round": 1}, {"round": 1, "clients": [99]}])
def test_a_row_that_does_not_say_who_took_part_is_refused_where_that_counts(tmp_path: Path, row: Any) -> None:
    with pytest.raises(DamagedError, match=r"^privacy\.jsonl: round 1 must have its clients' ids, below 3$"):
        started(tmp_path, [row], by_client=True)
    started(tmp_path, [row])


def test_a_run_that_was_killed_before_its_first_checkpoint_has_released_what_it_has(tmp_path: Path) -> None:
    assert charges(tmp_path, 0) == []
    assert charges(None, 0) == []
    started(tmp_path, secure=True).on_round_start(1, [0])
    again = started(tmp_path, charges(tmp_path, 0), secure=True)
    again.on_round_start(1, [0])
    assert again.summary()["privacy"]["releases"] == 2
