"""Schedules: their clocks and steps by hand, synchronous rounds as a special case, the same bits resumed in flight."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flrl.aggregation import Krum, Median, TrimmedMean
from flrl.callbacks import Callback
from flrl.data import TensorSource
from flrl.devices import Devices, Fleet, Intervals, LogNormal, SineDays, Work
from flrl.sampling import AllClients, UniformSampler
from flrl.scheduling import (
    NOW,
    Asynchronous,
    Buffered,
    ConstantStaleness,
    Deadline,
    Hinge,
    Polynomial,
    Synchronous,
    Tiered,
    is_under_way,
)
from flrl.strategies import Ditto, FedAvg, FedDyn, FedRep, FedSGD, Moon, Scaffold
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LocalProblem, VectorizedTrainer
from flrl.transforms import SecAgg, Transform
from flrl.types import RoundRecord, ServerState
from flrl.worker import Worker
from tests.toys import fit, make_worker, setup_of

SGD = partial(torch.optim.SGD, lr=1.0)
TARGETS = (1.0, -1.0, 2.0)


class Point(pl.LightningModule):
    """One number, pulled towards the client's: a local step at lr 0.5 halves the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return 0.5 * (self.w - batch[0]).square().mean()

    test_step = training_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Paced(Devices):
    """Devices that take given seconds for a round, whatever there is to do; some drop out in a round."""

    def __init__(self, seconds: Sequence[float], drops: Sequence[tuple[int, int]] = (), **options: Any) -> None:
        super().__init__(**options)
        self.seconds, self.drops = np.array(seconds), set(drops)

    def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Any:
        return replace(super().table(sizes, rng), latency_s=self.seconds)

    def luck(self, round: int, clients: np.ndarray, seed: int) -> Any:
        dropped = np.array([(round, int(client)) in self.drops for client in clients], bool)
        return replace(super().luck(round, clients, seed), dropped=dropped, lost_at=np.full(len(clients), 0.5))


def on_points(schedule: Any, devices: Devices, *, rounds: int = 4, clients: int = 2, **options: Any) -> Worker:
    """Clients of one sample each at `TARGETS`."""
    options = {"sampler": AllClients(), "server_optimizer": SGD, **options}
    source = TensorSource(torch.tensor(TARGETS[:clients])[:, None], torch.zeros(clients, dtype=torch.int64))
    worker = make_worker(
        FedAvg(rounds=rounds, schedule=schedule, **options), module=Point(), sizes=[1] * clients, source=source
    )
    return replace(worker, fleet=Fleet(devices, Work(batch_size=8), 0))


class Models(Callback):
    """The model, the clock and the cohort after each round."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self.times: list[float] = []
        self.cohorts: list[list[int]] = []
        self.absent: list[dict[int, str]] = []

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        if state.round:
            reports = history[-1].reports
            self.points.append(float(state.vector[0]))
            self.times.append(history[-1].metrics["time/virtual_s"])
            self.cohorts.append([report.client_id for report in reports if report.rejected is None])
            self.absent.append({report.client_id: report.rejected for report in reports if report.rejected is not None})


def run(worker: Worker) -> Models:
    models = Models()
    fit(worker, callbacks=[models])
    return models


def test_two_asynchronous_clients_by_hand() -> None:
    """Client 0 pulls to 1 and takes 1 s, client 1 pulls to -1 and takes 3 s; half of each model is mixed in."""
    found = run(on_points(Asynchronous(mixing=0.5, staleness=ConstantStaleness()), Paced([1.0, 3.0])))
    # At 1 s client 0's 0.5 is mixed into 0; at 2 s its 0.625 into 0.25; at 3 s client 1's -0.5, which started from 0,
    # into 0.4375; at the same time client 0's 0.71875, which started from 0.4375, into -0.03125.
    assert found.points == [0.25, 0.4375, -0.03125, 0.34375]
    assert found.times == [1.0, 2.0, 3.0, 3.0]
    assert found.cohorts == [[0], [0], [1], [0]]


def test_an_old_model_counts_less() -> None:
    found = run(on_points(Asynchronous(mixing=0.5, staleness=Polynomial(exponent=1.0)), Paced([1.0, 3.0]), rounds=3))
    # Client 1's model is two steps old: a third of 0.5.
    assert found.points == pytest.approx([0.25, 0.4375, 0.4375 + (-0.5 - 0.4375) / 6], rel=1e-6)


def test_a_buffer_of_two_of_three_by_hand() -> None:
    devices = Paced([1.0, 2.0, 4.0])
    found = run(on_points(Buffered(buffer=2, staleness=Polynomial(exponent=1.0)), devices, rounds=3, clients=3))
    # 1: clients 0 and 1 from 0, (0.5 - 0.5) / 2. 2: both again from 0 at 2 s, 0 arrives at 3 s; client 2, one step old,
    # at 4 s as client 1 does, and is before it: it started earlier. (0.5 + 1 / 2) / 2. 3: client 1 from 0 at 4 s, one
    # step old; clients 0 and 2 from 0.5 would be there at 5 and 8 s: (-0.5 / 2 + 0.25) / 2.
    assert found.points == [0.0, 0.5, 0.5]
    assert found.times == [2.0, 4.0, 5.0]
    assert found.cohorts == [[0, 1], [0, 2], [0, 1]]


def test_a_client_that_drops_out_is_no_update_of_the_buffer() -> None:
    devices = Paced([1.0, 2.0, 4.0], drops=[(1, 0)])
    found = run(on_points(Buffered(buffer=2), devices, rounds=1, clients=3))
    assert (found.points, found.times, found.cohorts) == ([0.25], [4.0], [[1, 2]])  # (-0.5 + 1) / 2
    assert found.absent == [{0: "dropped out"}]


def test_synchronous_rounds_take_as_long_as_their_slowest_client() -> None:
    found = run(on_points(Synchronous(), Paced([1.0, 2.0, 4.0], drops=[(2, 2)]), rounds=3, clients=3))
    assert found.times == [4.0, 6.0, 10.0]  # client 2 is lost in round 2, after half of its time
    assert found.cohorts == [[0, 1, 2], [0, 1], [0, 1, 2]]


ALL_LOST = [(2, client) for client in range(3)]


@pytest.mark.parametrize("schedule", [Synchronous(), Deadline(deadline_s=9.0), Buffered(buffer=3)])
def test_who_is_lost_would_have_sent_too(schedule: Any) -> None:
    """Four bytes take 4 s to send: in round 2 all three are lost, the last of them after half of 4 + 4 s."""
    devices = Paced([1.0, 2.0, 4.0], drops=ALL_LOST, up_bytes_per_s=1.0)
    found = run(on_points(schedule, devices, rounds=2, clients=3))
    assert (found.times, found.cohorts) == ([8.0, 12.0], [[0, 1, 2], []])


def test_all_lost_are_waited_for_until_the_deadline() -> None:
    devices = Paced([1.0, 2.0, 8.0], drops=ALL_LOST, up_bytes_per_s=1.0)
    found = run(on_points(Deadline(deadline_s=5.5), devices, rounds=2, clients=3))
    assert found.times == [5.5, 11.0]  # client 2 would be lost after 6 s


def test_an_abandoned_round_takes_as_long_as_what_was_sent_in_vain() -> None:
    devices = Paced([1.0, 2.0, 4.0], drops=[(2, 2)], up_bytes_per_s=1.0)
    found = run(on_points(Synchronous(), devices, rounds=3, clients=3, min_clients=3))
    assert found.times == [
        8.0,
        14.0,
        22.0,
    ]  # in round 2 clients 0 and 1 have sent after 5 and 6 s, client 2 is lost at 4
    assert found.cohorts == [[0, 1, 2], [], [0, 1, 2]]


def test_messages_after_the_model_take_time_too() -> None:
    """Three clients of secure aggregation are sent as many bytes each; a deadline knows them from the round before."""
    devices = Devices(down_bytes_per_s=1.0)
    for schedule, known in ((Synchronous(), True), (Deadline(deadline_s=1e6), False)):
        worker = on_points(schedule, devices, rounds=2, clients=3, transforms={"secagg": SecAgg()})
        _, history = fit(worker)
        rows = [record.metrics for record in history if record.round]
        each = [row["comm/down_bytes"] / 3 for row in rows]
        assert min(each) > 4.0  # the bytes of the model alone
        ends = np.diff([0.0] + [row["time/virtual_s"] for row in rows])
        assert ends.tolist() == pytest.approx([each[0] if known else 4.0, each[1] if known else each[0]])


def test_the_last_updates_are_late() -> None:
    found = run(on_points(Deadline(deadline_s=3.0), Paced([1.0, 2.0, 4.0]), rounds=2, clients=3))
    assert (found.points, found.times, found.cohorts) == ([0.0, 0.0], [3.0, 6.0], [[0, 1]] * 2)
    assert found.absent == [{2: "late"}] * 2
    found = run(on_points(Deadline(deadline_s=0.5), Paced([1.0, 2.0, 4.0], drops=[(1, 1)]), rounds=2, clients=3))
    assert (found.points, found.times, found.cohorts) == ([0.0, 0.0], [0.5, 1.0], [[], []])  # rounds without updates
    assert found.absent == [{0: "late", 1: "dropped out", 2: "late"}, dict.fromkeys(range(3), "late")]
    found = run(on_points(Deadline(deadline_s=9.0), Paced([1.0, 2.0, 4.0]), rounds=2, clients=3))
    assert (found.times, found.absent) == ([4.0, 8.0], [{}, {}])


def test_a_round_with_too_few_in_time_is_abandoned() -> None:
    devices = Paced([1.0, 2.0, 4.0])
    found = run(on_points(Deadline(deadline_s=1.5), devices, rounds=1, clients=3, min_clients=2))
    assert (found.points, found.times) == ([0.0], [1.5])
    assert found.absent == [{0: "too few others", 1: "late", 2: "late"}]


def test_a_round_with_fewer_than_its_rule_needs_is_abandoned() -> None:
    """The trimmed mean of three rows is 1, the median; of two there is none."""
    options: dict[str, Any] = {"rounds": 2, "clients": 3, "aggregator": TrimmedMean(num_malicious=1)}
    found = run(on_points(Deadline(deadline_s=3.0), Paced([1.0, 2.0, 4.0]), **options))
    assert (found.points, found.times) == ([0.0, 0.0], [3.0, 6.0])
    assert found.absent == [{0: "too few others", 1: "too few others", 2: "late"}] * 2
    found = run(on_points(Synchronous(), Paced([1.0, 2.0, 4.0], drops=[(1, 0)]), **options))
    assert (found.points, found.cohorts) == ([0.0, 0.5], [[], [0, 1, 2]])


def test_a_round_in_which_too_few_are_there_is_abandoned() -> None:
    always = np.array([0.0]), np.array([60.0])
    away = Intervals([np.array([5.0]), always[0], always[0]], [always[1]] * 3, np.full(3, 60.0))
    devices = Paced([1.0, 2.0, 4.0], availability=away)
    found = run(on_points(Synchronous(), devices, rounds=3, clients=3, min_clients=3))
    assert found.points[0] == 0.0
    assert found.absent[0] == {1: "too few others", 2: "too few others"}


def test_a_round_may_end_with_the_first_updates() -> None:
    found = run(on_points(Deadline(first=2), Paced([1.0, 2.0, 4.0], drops=[(2, 0)]), rounds=2, clients=3))
    assert (found.times, found.cohorts) == ([2.0, 6.0], [[0, 1], [1, 2]])
    assert found.absent == [{2: "late"}, {0: "dropped out"}]


def test_stragglers_take_the_steps_that_fit() -> None:
    """Ten steps of a second each; a second for the link: 4 s leave three steps."""
    source = TensorSource(torch.ones(3, 1), torch.zeros(3, dtype=torch.int64))
    strategy = FedAvg(
        rounds=1,
        sampler=AllClients(),
        server_optimizer=SGD,
        schedule=Deadline(deadline_s=4.5, stragglers="partial"),
    )
    trainer = EagerTrainer(batch_size=1, local_epochs=10)
    worker = make_worker(strategy, module=Point(), sizes=[1, 1, 1], source=source, trainer=trainer)

    class Speeds(Paced):
        def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Any:
            return replace(super().table(sizes, rng), samples_per_s=np.array([1.0, 10.0, 0.1]))

    worker = replace(worker, fleet=Fleet(Speeds([1.0, 1.0, 1.0]), Work(batch_size=1, epochs=10), 0))
    models = Models()
    _, history = fit(worker, callbacks=[models])
    steps = {report.client_id: report.num_steps for report in history[-1].reports}
    assert steps == {0: 3, 1: 10, 2: 0}
    assert models.absent == [{2: "late"}]  # no step fits
    assert models.times == [4.5]
    assert history[-1].metrics["devices/partial"] == 1
    assert models.points == pytest.approx([((1 - 0.5**3) + (1 - 0.5**10)) / 2])


@pytest.mark.parametrize(
    ("kind", "size", "epochs", "deadline_s", "steps"),
    [
        (partial(Scaffold, option=1), 719, 1, 7.19, 0),  # the full gradient takes all of it
        (partial(Scaffold, option=1), 719, 1, 7.5, 0),
        (partial(Scaffold, option=1), 719, 1, 8.2, 3),  # 1.01 s are left for batches of 0.32 s
        (partial(Scaffold, option=1), 719, 1, 99.0, 23),
        (FedAvg, 36, 3, 0.68, 3),  # batches of 32, 4 and 32
        (FedAvg, 36, 3, 0.99, 4),
        (partial(Ditto, lam=0.1), 36, 3, 0.72, 2),  # both trainings
        (partial(FedRep, head_epochs=2, personal=["net*bias"]), 36, 3, 1.1, 2),  # the head takes 0.72 s
    ],
)
def test_steps_that_fit_are_those_beside_all_other_work(
    kind: Any, size: int, epochs: int, deadline_s: float, steps: int
) -> None:
    strategy = kind(
        rounds=1,
        sampler=AllClients(),
        server_optimizer=SGD,
        schedule=Deadline(deadline_s=deadline_s, stragglers="partial"),
    )
    worker = make_worker(strategy, sizes=[size, 1], trainer=EagerTrainer(batch_size=32, local_epochs=epochs))
    work = Work(32, epochs, passes=strategy.passes, gradients=strategy.gradients)
    _, history = fit(replace(worker, fleet=Fleet(Devices(samples_per_s=100.0), work, 0)))
    report = history[-1].reports[0]
    assert (report.num_steps, report.rejected) == (steps, None if steps else "late")


def test_a_tier_is_of_equally_fast_clients() -> None:
    seconds = [5.0, 1.0, 3.0, 2.0, 4.0, 6.0]
    schedule = Tiered(tiers=3, probabilities=[0.5, 0.5, 0.0])
    strategy = FedAvg(rounds=12, sampler=AllClients(), server_optimizer=SGD, schedule=schedule)
    worker = make_worker(strategy, sizes=[2] * 6)
    models = Models()
    fit(replace(worker, fleet=Fleet(Paced(seconds), Work(8), 0)), callbacks=[models])
    assert {tuple(cohort) for cohort in models.cohorts} == {(1, 3), (2, 4)}
    ends = np.diff([0.0, *models.times]).tolist()
    assert ends == pytest.approx([2.0 if cohort == [1, 3] else 4.0 for cohort in models.cohorts])


def test_nobody_available_waits_for_somebody() -> None:
    windows = Intervals([np.array([5.0]), np.array([8.0])], [np.array([7.0]), np.array([9.0])], np.array([10.0, 10.0]))
    for schedule in (Synchronous(), Buffered(buffer=1)):
        found = run(on_points(schedule, Paced([2.0, 2.0], availability=windows), rounds=4))
        assert found.times == [5.0, 7.0, 8.0, 10.0]
        assert found.cohorts == [[], [0], [], [1]]


@pytest.mark.parametrize("schedule", [Synchronous(), Buffered(buffer=2)])
def test_the_clock_goes_on(schedule: Any) -> None:
    """Clients that are there from 100.1 s to 160.1 s of each hour begin three rounds of 25 s in that minute."""
    hourly = Intervals([np.array([100.1])], [np.array([160.1])], np.array([3600.0]))
    found = run(on_points(schedule, Paced([25.0, 25.0], availability=hourly), rounds=24))
    assert [len(cohort) for cohort in found.cohorts] == [0, 2, 2, 2] * 6
    hours = [[3600 * hour + 100.1 + 25 * round for round in range(4)] for hour in range(6)]
    assert found.times == pytest.approx([time for hour in hours for time in hour], rel=1e-12)


def test_the_clock_goes_on_through_short_slots() -> None:
    days = SineDays(slot_s=0.1, mean=0.05, amplitude=0.0)
    found = run(on_points(Synchronous(), Paced([0.3, 0.3], availability=days), rounds=60))
    assert (np.diff([0.0, *found.times]) > 0).all()
    assert any(found.cohorts[30:])


WAYS: dict[str, Any] = {
    "synchronous": Synchronous(),
    "deadline": Deadline(deadline_s=2.0, first=3),
    "partial": Deadline(deadline_s=1.5, stragglers="partial"),
    "tiered": Tiered(tiers=2),
    "buffered": Buffered(buffer=2),
    "asynchronous": Asynchronous(staleness=Hinge(slope=1.0, free=1)),
}
UNEVEN = Devices(
    samples_per_s=LogNormal(median=30.0, sigma=1.0), up_bytes_per_s=100.0, latency_s=0.1, dropout=0.1, stragglers=0.2
)


def uneven(schedule: Any, kind: Any = FedAvg, *, rounds: int = 6, trainer: Any = None, **options: Any) -> Worker:
    strategy = kind(
        rounds=rounds, sampler=UniformSampler(num=4), server_optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        schedule=schedule, **options,
    )  # fmt: skip
    trainer = trainer or EagerTrainer(batch_size=8, shuffle=True, local_epochs=2)
    worker = make_worker(strategy, sizes=(20, 13, 8, 30, 25, 9), trainer=trainer)
    return replace(worker, fleet=Fleet(UNEVEN, Work(batch_size=8, epochs=2), 3))


class Kept(Callback):
    """The states after each round."""

    def __init__(self) -> None:
        self.states: list[ServerState] = []

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        self.states.append(state)


def rows(history: Sequence[RoundRecord]) -> list[Any]:
    drop = ("time/round_s", "time/train_s")
    return [(r.digest, {k: v for k, v in r.metrics.items() if k not in drop}) for r in history if r.round]


@pytest.mark.parametrize("kind", [FedAvg, partial(Ditto, lam=0.1)], ids=["fedavg", "ditto"])
@pytest.mark.parametrize("way", WAYS)
def test_a_run_resumed_in_flight_is_the_undisturbed_one(way: str, kind: Any) -> None:
    kept = Kept()
    _, whole = fit(uneven(WAYS[way], kind), callbacks=[kept])
    states = [state for state in kept.states if state.round]
    for start in (states[0], states[3]):
        _, rest = fit(uneven(WAYS[way], kind), state=start)
        assert rows(rest) == rows(whole)[start.round :]
    under_way = [name for name in states[3].variables if is_under_way(name)]
    assert bool(under_way) == (way in ("buffered", "asynchronous"))
    times = [row[1]["time/virtual_s"] for row in rows(whole)]
    assert times == sorted(times)
    assert times[0] > 0


@pytest.mark.parametrize("rule", [None, Median()])
@pytest.mark.parametrize(
    "trainer", [None, VectorizedTrainer(batch_size=8, local_epochs=2)], ids=["eager", "vectorized"]
)
def test_a_buffer_as_large_as_the_cohort_is_synchronous(rule: Any, trainer: Any) -> None:
    several = [
        rows(fit(uneven(schedule, aggregator=rule, trainer=trainer))[1])
        for schedule in (Synchronous(), Buffered(buffer=4))
    ]
    drop = ("schedule/staleness_mean", "schedule/staleness_max", "schedule/in_flight")
    for _, numbers in several[1]:
        assert [numbers.pop(name) for name in drop] == [0.0, 0.0, 0.0]
    assert [digest for digest, _ in several[0]] == [digest for digest, _ in several[1]]
    assert several[0] == several[1]


def test_without_devices_there_is_no_clock_and_equal_ones_change_nothing_else() -> None:
    plain = fit(replace(uneven(Synchronous()), fleet=None))
    timed = fit(replace(uneven(Synchronous()), fleet=Fleet(Devices(samples_per_s=5.0), Work(8, 2), 0)))
    assert [record.digest for record in plain[1]] == [record.digest for record in timed[1]]
    assert NOW not in plain[0].variables
    assert "time/virtual_s" not in plain[1][-1].metrics
    assert timed[1][-1].metrics["time/virtual_s"] > 0


@given(st.lists(st.floats(0.1, 9.0), min_size=5, max_size=5), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_nothing_that_is_sent_is_lost(seconds: list[float], buffer: int, seed: int) -> None:
    """Whoever is sent a model is under way, or has been heard of, once; nobody is sent one before that."""
    strategy = FedAvg(rounds=5, sampler=UniformSampler(num=4), server_optimizer=SGD, schedule=Buffered(buffer=buffer))
    worker = make_worker(
        strategy, sizes=[1] * 5, module=Point(), source=TensorSource(torch.ones(5, 1), torch.zeros(5).long())
    )
    devices = Paced(seconds, dropout=0.3)
    devices.luck = partial(Devices.luck, devices)  # type: ignore[method-assign]
    state, history = fit(replace(worker, fleet=Fleet(devices, Work(8), seed)))
    heard = sum(record.metrics["clients/num"] for record in history if record.round)
    sent = sum(record.metrics["comm/down_bytes"] for record in history if record.round) / 4
    left = state.variables["schedule/clients"].tolist()
    assert sent == heard + len(left)
    assert len(set(left)) == len(left) <= 4
    taken = [r.metrics["clients/num"] - r.metrics["clients/rejected"] for r in history if r.round]
    assert max(taken) <= buffer
    now = float(state.variables[NOW])
    assert all(arrival >= now for arrival in state.variables["schedule/arrivals"].tolist())


class AllAtOnce(Transform):
    hides_updates = True


class Twice(FedAvg):
    """Trains twice as long as it is told."""

    def local(self, problem: LocalProblem) -> Local:
        trained = yield replace(problem, steps=None, epochs=4)
        return trained.update(problem)


def test_a_strategy_that_trains_as_long_as_it_likes_has_no_partial_work() -> None:
    with pytest.raises(
        ValueError, match="were left until the deadline: Twice trains as long as it likes; stragglers=drop"
    ):
        fit(uneven(WAYS["partial"], Twice))


def test_rules_are_told_how_many_updates_there_are() -> None:
    strategy = FedAvg(
        rounds=1,
        sampler=AllClients(),
        server_optimizer=SGD,
        schedule=Buffered(buffer=2),
        aggregator=Krum(num_malicious=1),
    )
    with pytest.raises(ValueError, match=r"needs at least 5 clients in a round .*, and 2 take part"):
        setup_of(strategy=strategy, sizes=[1] * 9, devices=UNEVEN).check()


@pytest.mark.parametrize(
    ("kind", "schedule", "devices", "message"),
    [
        (FedAvg, Buffered(buffer=2), None, "Buffered needs a clock: choose devices=equal or another"),
        (FedAvg, Deadline(first=1), None, "Deadline needs a clock"),
        (Scaffold, Buffered(buffer=2), UNEVEN, "clients of Scaffold need what the server has for a whole round"),
        (FedAvg, Buffered(buffer=4), UNEVEN, "buffer=4: only 3 clients are under way"),
        (FedAvg, Deadline(first=4), UNEVEN, "first=4: only 3 clients take part"),
        (FedSGD, Deadline(deadline_s=1.0, stragglers="partial"), UNEVEN, "FedSGD take no steps; drop goes with it"),
        (FedAvg, Tiered(tiers=4), UNEVEN, "tiers=4: there are only 3 clients"),
        (partial(FedAvg, transforms={"mask": AllAtOnce()}), Buffered(buffer=2), UNEVEN, "mask: needs all clients of a"),
    ],
)
def test_what_does_not_go_together(kind: Any, schedule: Any, devices: Any, message: str) -> None:
    strategy = kind(rounds=1, sampler=AllClients(), server_optimizer=SGD, schedule=schedule)
    with pytest.raises(ValueError, match=message):
        setup_of(strategy=strategy, devices=devices).check()


@pytest.mark.parametrize("kind", [FedAvg, partial(FedDyn, alpha=0.1), partial(Moon, layer="net", mu=1.0)])
def test_what_needs_nothing_of_a_round_overlaps(kind: Any) -> None:
    strategy = kind(rounds=1, sampler=AllClients(), server_optimizer=SGD, schedule=Buffered(buffer=2))
    setup_of(strategy=strategy, devices=UNEVEN).check()
    assert not strategy.needs_rounds
    assert setup_of(strategy=strategy, devices=UNEVEN).most_updates == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Buffered(buffer=0), "buffer=0: must be at least 1"),
        (lambda: Asynchronous(mixing=0.0), "mixing=0.0: must be above 0"),
        (lambda: Deadline(), "deadline_s=null and first=null"),
        (lambda: Deadline(deadline_s=0.0), "deadline_s=0.0: must be positive"),
        (lambda: Deadline(first=0), "first=0: must be at least 1"),
        (lambda: Deadline(first=1, stragglers="partial"), "stragglers=partial needs deadline_s"),
        (lambda: Deadline(first=1, stragglers="wait"), "stragglers='wait': must be 'drop' or 'partial'"),  # type: ignore[arg-type]
        (lambda: Tiered(tiers=0), "tiers=0: must be at least 1"),
        (lambda: Tiered(tiers=2, probabilities=[1.0]), "must be 2 numbers"),
        (lambda: Polynomial(exponent=-1.0), "exponent=-1.0"),
        (lambda: Hinge(slope=-1.0), "slope=-1.0"),
        (lambda: Hinge(free=-1), "free=-1"),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_of_staleness() -> None:
    assert [Polynomial(exponent=0.5)(tau) for tau in (0, 3, 8)] == [1.0, 0.5, 1 / 3]
    assert [Hinge(slope=10.0, free=4)(tau) for tau in (0, 4, 5, 6)] == [1.0, 1.0, 1 / 11, 1 / 21]
    assert ConstantStaleness()(99) == 1.0
