"""A round's row, from reports made by hand."""

import math

from flrl.records import evaluation_record, round_record
from flrl.types import Aggregate, ClientReport

REPORTS = (
    ClientReport(0, 10, 2, {"train/loss": 1.0, "transforms/clip/clipped": 1.0}, up_bytes=100),
    ClientReport(2, 30, 4, {"train/loss": 3.0, "transforms/clip/clipped": 1.0, "train/own": 7.0}, up_bytes=200),
    ClientReport(5, 60, 8, {"train/loss": 9.0, "transforms/clip/clipped": 1.0}, up_bytes=400, rejected="not finite"),
)


def test_means_are_of_accepted_clients_by_samples_and_what_was_sent_is_counted_of_all() -> None:
    record = round_record(4, {"test/loss": 0.5}, "abc", Aggregate({}, 40.0, REPORTS))
    assert record.metrics == {
        "train/loss": 2.5,  # (10 * 1 + 30 * 3) / 40
        "train/own": 7.0,  # of those who have it
        "transforms/clip/clipped": 2.0,
        "clients/num": 3.0,
        "clients/rejected": 1.0,
        "comm/up_bytes": 700.0,
        "test/loss": 0.5,
    }
    assert (record.round, record.digest, record.reports) == (4, "abc", REPORTS)


def test_a_loss_that_is_no_number_makes_the_mean_none() -> None:
    reports = (REPORTS[0], ClientReport(1, 10, 1, {"train/loss": math.inf}, 1))
    assert math.isnan(round_record(1, {}, "", Aggregate({}, 20.0, reports)).metrics["train/loss"])


def test_the_evaluation_before_training_is_round_0() -> None:
    record = evaluation_record({"test/loss": 2.0}, "abc")
    assert (record.round, record.metrics, record.digest, record.reports) == (0, {"test/loss": 2.0}, "abc", ())
