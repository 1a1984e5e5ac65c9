"""Samplers that weigh, take turns or read a trace: their laws, the weights that they give, and runs with them."""

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flrl.aggregation import EveryUpdate, Median
from flrl.layout import digest
from flrl.sampling import NORMS, AllClients, ImportanceSampler, RoundRobin, TraceSampler, WeightedSampler, reweighed
from flrl.sampling.importance import cut_off
from flrl.scheduling import Buffered
from flrl.strategies import FedAvg, FedDyn, Scaffold
from flrl.transforms import Transform
from flrl.types import Broadcast, ClientTask
from tests.strategies.test_scaffold import States
from tests.toys import fit, make_worker, setup_of

SIZES = np.array([10, 20, 30, 40, 50, 60])
SGD = partial(torch.optim.SGD, lr=1.0)


def weights(sampler: Any, round: int, sizes: np.ndarray = SIZES, **given: Any) -> dict[int, float]:
    """By client id, those of a round's cohort, whose own weights are the sizes."""
    cohort = sampler(len(sizes), seed=3, round=round, sizes=sizes, **given)
    tasks = [ClientTask(round, int(client), int(sizes[client]), float(sizes[client])) for client in cohort]
    variables = {NORMS: torch.from_numpy(given["norms"])} if "norms" in given else {}
    own = Broadcast(round, torch.zeros(1), float(sizes[cohort].sum()))
    sent, found = reweighed(sampler, own, tasks, variables, sizes, seed=3, available=given.get("available"))
    assert sent.total_weight == math.fsum(task.weight for task in found)
    return {task.client_id: task.weight for task in found}


def test_draws_with_replacement_follow_the_samples_and_count_each() -> None:
    """Chi-squared of 2000 draws with 5 degrees of freedom: its 0.999 quantile is 20.5."""
    sampler, counts = WeightedSampler(num=4), np.zeros(6)
    for round in range(1, 501):
        found = weights(sampler, round)
        assert sum(found.values()) == 4
        for client, weight in found.items():
            counts[client] += weight
    expected = 2000 * SIZES / 210
    assert ((counts - expected) ** 2 / expected).sum() < 20.5
    assert max(weights(sampler, round)[5] for round in range(1, 20) if 5 in weights(sampler, round)) >= 2


def test_draws_without_replacement_are_one_after_the_other() -> None:
    """Client 0 of 1, 2, 3 samples: 1/6 at first, then 2/6 * 1/4 + 3/6 * 1/3; and so on."""
    sampler, sizes, counts = WeightedSampler(num=2, replace=False), np.array([1, 2, 3]), np.zeros(3)
    for round in range(1, 1001):
        found = weights(sampler, round, sizes)
        assert [*found.values()] == [1.0, 1.0]
        counts[[*found]] += 1
    assert counts / 1000 == pytest.approx([5 / 12, 11 / 15, 17 / 20], abs=0.05)


def test_where_fewer_are_there_than_draws_all_take_part_by_their_samples() -> None:
    few = np.array([True, False, False, True, False, False])
    assert weights(WeightedSampler(num=3), 1, available=few) == {0: 10.0, 3: 40.0}
    assert weights(WeightedSampler(num=2), 1, np.array([10, 0, 0, 0])) == {0: 10.0}


@pytest.mark.parametrize(
    ("scores", "num", "expected"),
    [
        ([1, 1, 2, 8], 2, [0.25, 0.25, 0.5, 1]),  # 4 is cut off: one of 4 is left for a sum of 4
        ([1, 1, 1, 1], 2, [0.5] * 4),
        ([1, 2, 3, 4], 1, [0.1, 0.2, 0.3, 0.4]),
        ([1, 6, 8, 9], 3, [1 / 7, 6 / 7, 1, 1]),
        ([0, 1, 3], 2, [0, 1, 1]),
        ([0, 0, 0], 2, [0, 0, 0]),
        ([1, 2], 2, [1, 1]),
    ],
)
def test_probabilities_are_in_proportion_to_scores_and_sum_to_the_cohort(
    scores: list[float], num: int, expected: list[float]
) -> None:
    assert cut_off(np.array(scores, float), num) == pytest.approx(expected)


def test_probabilities_by_norms_have_the_least_variance_of_all() -> None:
    """The variance of the estimate is the sum of s^2 / p - s^2; no other split of the expected cohort has less."""
    scores = np.array([1.0, 2.0, 3.0, 10.0])
    best = (scores**2 / cut_off(scores, 2)).sum()
    for tried in itertools.product(np.arange(0.05, 1.0001, 0.05), repeat=3):
        left = 2 - sum(tried)
        if 0 < left <= 1:
            assert best <= (scores**2 / np.array([*tried, left])).sum() + 1e-9


@pytest.mark.parametrize("by", ["norm", "loss"])
def test_importance_is_by_samples_times_the_last_report(by: str) -> None:
    """Of 4 clients with scores 10 * 1, 20 * 3, 30 * 3 (unknown: as the largest) and 40 * 1, that sum to 200."""
    sampler = ImportanceSampler(num=1, by=by, uniform=0.2)
    reported = {"norms" if by == "norm" else "losses": np.array([1.0, 3.0, np.inf, 1.0])}
    found = sampler.probabilities(4, sizes=SIZES[:4], **reported)
    assert found == pytest.approx(0.8 * np.array([10, 60, 90, 40]) / 200 + 0.2 * SIZES[:4] / 100)
    some = np.array([True, True, False, True])
    away = sampler.probabilities(4, sizes=SIZES[:4], available=some, **reported)
    assert away == pytest.approx(0.8 * np.array([10, 60, 0, 40]) / 110 + 0.2 * np.array([10, 20, 0, 40]) / 70)
    assert sampler.probabilities(4, sizes=SIZES[:4]) == pytest.approx(SIZES[:4] / 100)


def test_importance_weights_are_unbiased_for_all_and_for_those_who_are_there() -> None:
    sampler, norms = ImportanceSampler(num=2), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    for some in (None, np.array([True, False, True, True, True, False])):
        chances = sampler.probabilities(6, sizes=SIZES, norms=norms, available=some)
        known = np.zeros(6)
        counts = np.zeros(6)
        for round in range(1, 401):
            for client, weight in weights(sampler, round, norms=norms, available=some).items():
                known[client] = weight
                counts[client] += 1
        there = np.ones(6, bool) if some is None else some
        assert known * chances == pytest.approx(np.where(there, SIZES * 210 / SIZES[there].sum(), 0))
        assert counts / 400 == pytest.approx(chances, abs=0.08)
        assert chances.sum() == pytest.approx(2)


def run(sampler: Any, rounds: int = 4) -> Any:
    watch = States()
    worker = make_worker(FedAvg(rounds=rounds, sampler=sampler, server_optimizer=SGD), sizes=SIZES.tolist())
    state, history = fit(worker, callbacks=[watch])
    return worker, state, history, watch.states


def test_the_server_steps_by_the_sum_over_the_weight_of_all() -> None:
    """Not by the mean of the cohort: the model moves by the sum of w / (p W) times updates."""
    sampler = ImportanceSampler(num=2)
    worker, _, history, states = run(sampler, rounds=6)
    before = states[2]
    sent, tasks = worker.strategy.plan(before, SIZES, 0, worker.model.layout)
    norms = before.variables[NORMS].numpy()
    chances = sampler.probabilities(6, sizes=SIZES, norms=norms)
    step = torch.zeros(worker.model.layout.size, dtype=torch.float64)
    for task in tasks:
        assert task.weight == pytest.approx(SIZES[task.client_id] / chances[task.client_id])
        step += worker.updates([task], sent)[0].vectors["update"] * task.weight / 210
    assert len(tasks) > 0
    assert torch.allclose(states[3].vector.double() - before.vector.double(), step, atol=1e-7)
    assert sum(task.weight for task in tasks) / 210 != pytest.approx(1, abs=0.05)
    own = np.array([task.weight for task in tasks])
    assert history[3].metrics["updates/effective_clients"] == pytest.approx(own.sum() ** 2 / (own**2).sum())


def test_a_client_that_is_drawn_twice_counts_twice() -> None:
    worker, _, _, states = run(WeightedSampler(num=4))
    sent, tasks = worker.strategy.plan(states[0], SIZES, 0, worker.model.layout)
    assert sorted(task.weight for task in tasks) == [1.0, 1.0, 2.0]
    mean = sum(worker.updates([task], sent)[0].vectors["update"] * task.weight / 4 for task in tasks)
    assert torch.allclose(states[1].vector.double() - states[0].vector.double(), mean, atol=1e-7)


@pytest.mark.parametrize(
    "sampler", [WeightedSampler(num=3), ImportanceSampler(num=2), RoundRobin(num=2)], ids=lambda s: type(s).__name__
)
def test_a_resumed_run_ends_in_the_same_bits(sampler: Any) -> None:
    worker, whole, history, states = run(sampler)
    resumed, _ = fit(worker, state=states[2], history=history[:2])
    assert digest(resumed.vector) == digest(whole.vector)


def test_clients_take_turns() -> None:
    sampler = RoundRobin(num=4)
    assert [sampler(6, seed=0, round=round).tolist() for round in (1, 2, 3, 4)] == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [2, 3, 4, 5],
        [0, 1, 2, 3],
    ]
    away = np.array([True, True, False, True, True, True])
    assert [sampler(6, seed=0, round=round, available=away).tolist() for round in (1, 2)] == [
        [0, 1, 3, 4],
        [0, 1, 4, 5],
    ]


TRACES = {
    "lists.jsonl": '{"round": 1, "clients": [4, 0]}\n\n{"round": 3, "clients": [2]}\n',
    "clients.jsonl": "".join(f'{{"round": {r}, "client_id": {c}, "x": 1}}\n' for r, c in ((1, 4), (3, 2), (1, 0))),
    "trace.csv": "client_id,round\n4,1\n0,1\n2,3\n",
}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_has_the_cohorts_of_its_rounds(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TRACES[name])
    sampler = TraceSampler(file=str(tmp_path / name))
    assert [sampler(5, seed=0, round=round).tolist() for round in range(1, 5)] == [[0, 4], [], [2], []]
    assert sampler.largest(5) == 2
    assert sampler(5, seed=0, round=1, available=np.arange(5) > 0).tolist() == [4]
    again = TraceSampler(file=str(tmp_path / name), cycle=True)
    assert [again(5, seed=0, round=round).tolist() for round in range(4, 8)] == [[0, 4], [], [2], [0, 4]]


@pytest.mark.parametrize("rounds", [4, 6])
def test_the_last_rounds_of_a_trace_may_be_empty(tmp_path: Path, rounds: int) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"round": 1, "clients": [0, 1]}\n{"round": 4, "clients": []}\n')
    sampler = TraceSampler(file=str(file), cycle=rounds > 4)
    sampler.check(setup_of(strategy=FedAvg(rounds=rounds, sampler=sampler, server_optimizer=SGD), sizes=SIZES.tolist()))
    found = [sampler(6, seed=0, round=round).tolist() for round in range(1, rounds + 1)]
    assert found == [[0, 1], [], [], [], [0, 1], []][:rounds]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"round": 4, "clients": [9]}', r"has client 9; there are 6 clients, from 0$"),
        ('{"round": 1, "clients": [1]}', r"its last round is 1, strategy\.rounds=4; strategy\.sampler\.cycle=true"),
        ('{"round": 0, "clients": [1]}', r"line 1 must have round, from 1, and clients"),
        ('{"round": 1, "clients": [-1]}', r"line 1 must have round"),
        ('{"round": 1}\n', r"line 1 must have round"),
        ('{"round": 1, "clients": 3}\n', r"line 1 must have round"),
        ("no json\n", r"line 1 must have round"),
        (
            '{"round": 4, "clients": [1]}\n\n{"round": 1, "clients": "12"}',
            r"line 3 must have round, from 1, and clients",
        ),
        ('{"round": 1.7, "clients": [1]}', r"line 1 must have round"),
        ('{"round": true, "clients": [1]}', r"line 1 must have round"),
        ('{"round": 1, "clients": [1.9]}', r"line 1 must have round"),
        ('{"round": 1, "client_id": true}', r"line 1 must have round"),
        ('{"round": 1, "clients": {"1": 2}}', r"line 1 must have round"),
        (f'{{"round": 1, "clients": [{2**63}]}}', r"line 1 .*; whole numbers below 2\*\*63$"),
        (f'{{"round": 4, "clients": [{2**63 - 1}]}}', r"has client 9223372036854775807; there are 6 clients, from 0$"),
        (f'{{"round": {10**30}, "clients": [1]}}', r"line 1 must have round"),
        ("", r"must name a file with cohorts"),
        ('{"round": 9, "clients": []}', r"must name a file with cohorts"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"^strategy\.sampler\.file=.*{message}"):
        checked(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"round,clients\n1,12\n", r"line 2 must have round, from 1, and client_id, from 0, in columns of these names"),
        (b"round,client_id\n1,3\n\n1,1.9\n", r"line 4 must have round"),
        (b"round,client_id\n1,1,2\n", r"line 2 must have round"),
        (b"round,client_id\n1\n", r"line 2 must have round"),
        (b"round,client_id\n1,-1\n", r"line 2 must have round"),
        (b"round,client_id\n1,1_0\n", r"line 2 must have round"),
        (b"round,client_id\n1," + b"9" * 30, r"line 2 must have round"),
        (b"round,client_id\n1," + b"9" * 200_000, r"line 2 must have round"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", r"is no text in UTF-8: byte 0$"),
        (None, r"cannot be read: Is a directory$"),
    ],
)
def test_a_table_that_is_no_trace_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "trace.csv"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^strategy\.sampler\.file=.*trace\.csv: {message}"):
        TraceSampler(file=str(file))


def checked(file: Path) -> None:
    sampler = TraceSampler(file=str(file))
    sampler.check(setup_of(strategy=FedAvg(rounds=4, sampler=sampler, server_optimizer=SGD), sizes=SIZES.tolist()))


class Hiding(Transform):
    hides_updates = True


TWO = WeightedSampler(num=2)
IMPORTANCE = ImportanceSampler(num=2)
REFUSED = {
    "trace": (FedAvg, {"sampler": TraceSampler(file=None)}, r"^strategy\.sampler\.file=null: must name a file"),
    "too many": (FedAvg, {"sampler": RoundRobin(num=7)}, r"^strategy\.sampler\.num=7: there are only 6 clients"),
    "draws": (FedAvg, {"sampler": WeightedSampler(num=7)}, r"^strategy\.sampler\.num=7: there are only 6 clients"),
    "median": (FedAvg, {"sampler": TWO, "aggregator": Median()}, r"^strategy\.aggregator=Median: the weights that Wei"),
    "each": (FedAvg, {"sampler": TWO, "aggregator": EveryUpdate()}, r"^strategy\.aggregator=EveryUpdate: the weights"),
    "FedDyn": (FedDyn, {"sampler": TWO, "alpha": 0.1}, r"^strategy\.sampler: FedDyn needs clients' own weights, Weigh"),
    "SCAFFOLD": (
        Scaffold,
        {"sampler": IMPORTANCE},
        r"^strategy\.sampler: ImportanceSampler weighs the updates",
    ),
    "late": (FedAvg, {"sampler": TWO, "schedule": Buffered(buffer=2)}, r"^strategy\.schedule=Buffered: WeightedS"),
    "hidden": (FedAvg, {"sampler": IMPORTANCE, "transforms": {"x": Hiding()}}, r"^strategy\.sampler\.by=norm: x hid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_sampler_does_not_go_with_is_refused(name: str) -> None:
    algorithm, options, message = REFUSED[name]
    strategy = algorithm(rounds=4, server_optimizer=SGD, **options)
    with pytest.raises(ValueError, match=message):
        setup_of(strategy=strategy, sizes=SIZES.tolist()).check()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoundRobin(num=0), r"^strategy\.sampler\.num=0: must be at least 1"),
        (lambda: WeightedSampler(num=0), r"^strategy\.sampler\.num=0: must be at least 1"),
        (lambda: ImportanceSampler(num=0), r"^strategy\.sampler\.num=0: must be at least 1"),
        (lambda: ImportanceSampler(num=1, by="size"), r"^strategy\.sampler\.by=size: must be norm or loss"),
        (lambda: ImportanceSampler(num=1, uniform=0), r"^strategy\.sampler\.uniform=0: must be above 0 and at most 1"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_samplers_without_weights_leave_tasks_as_they_are() -> None:
    tasks, sent = [ClientTask(1, 0, 3, 3.0)], Broadcast(1, torch.zeros(1), 3.0)
    assert reweighed(AllClients(), sent, tasks, {}, SIZES, seed=0) == (sent, tasks)
