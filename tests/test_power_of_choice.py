"""Power-of-choice: candidates by their samples, the largest losses take part, and what clients report is kept."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flrl.layout import digest
from flrl.runs.checkpoint import load_checkpoint, save_checkpoint
from flrl.sampling import LOSSES, PowerOfChoice, UniformSampler, noted
from flrl.seeding import SERVER, generator_for
from flrl.strategies import FedAvg
from flrl.types import ClientReport
from tests.strategies.test_scaffold import States
from tests.toys import fit, make_worker, setup_of

SIZES = (10, 20, 30, 40, 50, 60)


def average(rounds: int, sampler: Any) -> FedAvg:
    return FedAvg(rounds=rounds, sampler=sampler, server_optimizer=partial(torch.optim.SGD, lr=1.0))


def test_the_candidates_with_the_largest_losses_take_part() -> None:
    sampler, sizes = PowerOfChoice(num=2, candidates=4), np.array(SIZES)
    losses = np.array([0.5, 0.1, math.inf, 0.7, 0.3, math.inf])
    for round in range(1, 30):
        drawn = generator_for(3, round, SERVER, "cohort").choice(6, 4, replace=False, p=sizes / 210)
        expected = sorted(drawn, key=lambda client: -losses[client])[:2]  # a stable sort
        assert sampler(6, seed=3, round=round, sizes=sizes, losses=losses).tolist() == sorted(expected)
    others = np.array([0.5, 0.1, 0.2, 0.7, 0.3, 0.6])
    assert PowerOfChoice(num=3, candidates=6)(6, seed=3, round=1, losses=others).tolist() == [0, 3, 5]


def test_as_many_candidates_as_clients_are_drawn_by_their_samples() -> None:
    sampler = PowerOfChoice(num=1, candidates=1)
    cohorts = [sampler(6, seed=0, round=round, sizes=np.array(SIZES)).item() for round in range(2000)]
    assert np.bincount(cohorts) / 2000 == pytest.approx(np.array(SIZES) / 210, abs=0.035)


def test_cohorts_of_a_run_follow_what_clients_reported() -> None:
    sampler, watch = PowerOfChoice(num=2, candidates=4), States()
    worker = make_worker(average(8, sampler), sizes=SIZES)
    _, history = fit(worker, callbacks=[watch, kept := Cohorts()])
    losses = np.full(6, np.inf)
    for round, state in enumerate(watch.states, start=1):
        cohort, reported = kept.found[round]
        assert cohort == sampler(6, seed=0, round=round, sizes=np.array(SIZES), losses=losses).tolist()
        losses[cohort] = reported
        assert state.variables[LOSSES].tolist() == losses.tolist()
    assert math.isfinite(losses.max())
    others = [UniformSampler(num=2)(6, seed=0, round=round).tolist() for round in range(1, 9)]
    assert [cohort for cohort, _ in kept.found.values()] != others
    assert history[-1].metrics["comm/up_bytes"] == 2 * (worker.model.layout.nbytes + 8)


class Cohorts(States):
    """Keeps each round's cohort, and the losses that it reported."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Any] = {}

    def on_round_end(self, state: Any, history: Any) -> None:
        if reports := history[-1].reports:
            self.found[state.round] = [r.client_id for r in reports], [r.metrics["train/loss"] for r in reports]


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Any) -> None:
    sampler = PowerOfChoice(num=2, candidates=4)
    whole, history = fit(make_worker(average(6, sampler), sizes=SIZES))
    half_way, _ = fit(make_worker(average(3, sampler), sizes=SIZES))
    state = load_checkpoint(save_checkpoint(tmp_path, half_way, {}), {})
    resumed, _ = fit(make_worker(average(6, sampler), sizes=SIZES), state=state, history=history[:3])
    assert digest(resumed.vector) == digest(whole.vector)
    assert torch.equal(resumed.variables[LOSSES], whole.variables[LOSSES])


def test_who_was_left_out_keeps_its_last_loss() -> None:
    """And so does a client without a finite one; other samplers keep nothing."""
    sampler, before = PowerOfChoice(num=2, candidates=2), {LOSSES: torch.tensor([1.0, 2.0, 3.0, 4.0]).double()}
    report = ClientReport(client_id=0, num_samples=1, num_steps=1, metrics={"train/loss": 0.5}, up_bytes=8)
    reports = [
        report,
        replace(report, client_id=1, rejected="is not finite"),
        replace(report, client_id=2, metrics={"train/loss": math.nan}),
        replace(report, client_id=3, metrics={}),
    ]
    assert noted(sampler, before, reports, 4)[LOSSES].tolist() == [0.5, 2.0, 3.0, 4.0]
    assert before[LOSSES].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert noted(sampler, {}, reports, 4)[LOSSES].tolist() == [0.5, math.inf, math.inf, math.inf]
    assert noted(UniformSampler(), before, reports, 4) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num": 0, "candidates": 4}, r"^strategy\.sampler\.num=0: must be at least 1"),
        ({"num": 3, "candidates": 2}, r"^strategy\.sampler\.candidates=2: must be at least num, which is 3"),
        ({"num": 3, "candidates": 7}, r"^strategy\.sampler\.candidates=7: there are only 6 clients"),
    ],
)
def test_settings_are_checked(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerOfChoice(**settings).check(setup_of(sizes=SIZES))
