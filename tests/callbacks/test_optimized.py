import logging

import pytest

from flrl.callbacks import OptimizedMetric
from flrl.records import evaluated
from flrl.types import ClientReport, RoundRecord

REPORTS = (ClientReport(0, 10, 1, {"train/loss": 1.0, "noise": 0.5}, 400),)
TRAINED = {"noise": 0.5, "train/loss": 1.0, "clients/num": 1.0, "clients/rejected": 0.0, "comm/up_bytes": 4.0}
FIRST = RoundRecord(1, {**TRAINED, "time/round_s": 0.1}, "", REPORTS)
SECOND = RoundRecord(2, {**TRAINED, "val_loss": 2.0, "clients/loss_mean": 1.0, "time/round_s": 0.1}, "", REPORTS)


def test_evaluated_is_what_the_evaluation_logged() -> None:
    assert evaluated(FIRST) == []
    assert evaluated(SECOND) == ["val_loss", "clients/loss_mean"]


def test_a_metric_that_is_required_and_missing_ends_the_run_at_the_first_evaluation() -> None:
    callback = OptimizedMetric(name="test/accuracy", required=True)
    callback.on_round_end(None, [FIRST])
    there = "clients/loss_mean, train/loss, val_loss"
    message = f"optimized_metric=test/accuracy: nothing of that name is logged; there are: {there}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        callback.on_round_end(None, [FIRST, SECOND])


def test_otherwise_it_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    callback = OptimizedMetric(name="test/accuracy", required=False)
    with caplog.at_level(logging.WARNING):
        callback.on_round_end(None, [FIRST])
        callback.on_round_end(None, [FIRST, SECOND])
        callback.on_round_end(None, [FIRST, SECOND, SECOND])
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "optimized_metric=test/accuracy: nothing of that name is logged"
    ]


@pytest.mark.parametrize("name", ["val_loss", "train/loss", "clients/loss_mean", None])
def test_a_metric_that_is_there(name: str | None) -> None:
    callback = OptimizedMetric(name=name, required=True)
    callback.on_round_end(None, [FIRST])
    callback.on_round_end(None, [FIRST, SECOND])


def test_a_metric_of_clients_is_missed_when_clients_have_been_evaluated() -> None:
    callback = OptimizedMetric(name="clients/accuracy_mean", required=True)
    central = RoundRecord(1, {**TRAINED, "val_loss": 2.0}, "", REPORTS)
    callback.on_round_end(None, [central])
    callback.on_fit_end(None, [central, RoundRecord(2, {**TRAINED, "clients/accuracy_mean": 1.0}, "", REPORTS)])
    with pytest.raises(ValueError, match="clients/accuracy_mean: nothing of that name is logged; there are: clients/l"):
        callback.on_round_end(None, [central, SECOND])
    with pytest.raises(ValueError, match="clients/accuracy_mean: nothing of that name is logged; there are: train/l"):
        callback.on_fit_end(None, [central])
