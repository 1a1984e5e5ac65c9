"""A round's row, from reports made by hand."""

import math
from dataclasses import replace

import pytest

from flrl.records import evaluated, evaluation_record, round_record
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


def test_norms_of_updates_and_the_number_of_clients_of_equal_weight() -> None:
    """Four clients of weights 1, 2, 3 and one that was rejected: 6^2 / 14; norms stay in the clients' rows."""
    reports = [
        ClientReport(client, 10, 1, {"update/norm": norm}, 1, weight=weight)
        for client, norm, weight in ((0, 5.0, 1.0), (1, 1.0, 2.0), (2, 3.0, 3.0))
    ]
    rejected = ClientReport(3, 10, 1, {}, 1, rejected="not finite", weight=100.0)
    record = round_record(1, {}, "", Aggregate({}, 6.0, (*reports, rejected)))
    assert {name: value for name, value in record.metrics.items() if name.startswith("update")} == {
        "updates/norm_mean": 3.0,
        "updates/norm_max": 5.0,
        "updates/effective_clients": pytest.approx(36 / 14),
    }
    assert evaluated(replace(record, reports=())) == []


def test_a_loss_that_is_no_number_makes_the_mean_none() -> None:
    reports = (REPORTS[0], ClientReport(1, 10, 1, {"train/loss": math.inf}, 1))
    assert math.isnan(round_record(1, {}, "", Aggregate({}, 20.0, reports)).metrics["train/loss"])


def test_the_evaluation_before_training_is_round_0() -> None:
    record = evaluation_record({"test/loss": 2.0}, "abc")
    assert (record.round, record.metrics, record.digest, record.reports) == (0, {"test/loss": 2.0}, "abc", ())
