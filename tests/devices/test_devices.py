"""Devices: laws, tables, durations by hand, luck, availability, traces."""

import json
import math
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flrl.devices import (
    Constant,
    Devices,
    FedScaleAvailability,
    FedScaleDevices,
    Fleet,
    Intervals,
    LogNormal,
    Pareto,
    Profiles,
    SineDays,
    Table,
    Uniform,
    Work,
)
from flrl.sampling import AllClients
from flrl.strategies import APFL, Ditto, FedAvg, FedSGD, MimeLite, Scaffold

SIZES = np.array([100, 50, 20])
MADE: dict[str, Any] = {
    "rounds": 1,
    "sampler": AllClients(),
    "server_optimizer": partial(torch.optim.SGD, lr=1.0),
}
WORK = {  # a strategy to the seconds of a client whose two epochs take 2 s
    FedAvg(**MADE): 2.0,
    Ditto(lam=0.1, **MADE): 4.0,
    APFL(alpha=0.5, **MADE): 6.0,
    APFL(alpha=0.0, **MADE): 2.0,
    APFL(alpha=1.0, **MADE): 4.0,
    Scaffold(option=1, **MADE): 3.0,
    Scaffold(option=2, **MADE): 2.0,
    MimeLite(statistics="momentum", **MADE): 3.0,
    FedSGD(**MADE): 1.0,
}
EQUAL = {"samples_per_s": 100.0, "up_bytes_per_s": 10.0, "down_bytes_per_s": 40.0, "latency_s": 0.25}


def fleet(devices: Devices, work: Work | None = None, seed: int = 0) -> Fleet:
    return Fleet(devices, work or Work(batch_size=8, epochs=2), seed)


def test_seconds_by_hand() -> None:
    sent = fleet(Devices(**EQUAL)).dispatch(1, [0, 2], SIZES, down_bytes=20)
    assert sent.compute_s.tolist() == [2.0, 0.4]  # two epochs
    assert sent.other_s.tolist() == [0.75, 0.75]  # latency and 20 bytes down
    assert sent.seconds(5.0).tolist() == [3.25, 1.65]
    assert sent.seconds(np.array([5.0, 0.0])).tolist() == [3.25, 1.15]
    steps = fleet(Devices(**EQUAL), Work(batch_size=32, steps=5, passes=2.0)).dispatch(1, [0, 2], SIZES, 0)
    assert steps.compute_s.tolist() == [2.64, 2.0]  # twice 32, 32, 32, 4 and 32; twice five batches of all 20
    for kind, seconds in WORK.items():
        work = Work(batch_size=8, epochs=2, passes=kind.passes, gradients=kind.gradients)
        assert fleet(Devices(**EQUAL), work).dispatch(1, [0], SIZES, 0).compute_s.tolist() == [seconds]
    assert fleet(Devices(**EQUAL)).expected(SIZES, 40).tolist() == [7.25, 6.25, 5.65]


def test_no_limit_takes_no_time() -> None:
    sent = fleet(Devices()).dispatch(1, [0, 1, 2], SIZES, down_bytes=10**9)
    assert sent.seconds(1e9).tolist() == [0.0, 0.0, 0.0]


def test_an_epoch_may_take_the_same_for_all() -> None:
    sent = fleet(Devices(epoch_s=1.5)).dispatch(1, [0, 1, 2], SIZES, down_bytes=0)
    assert sent.compute_s.tolist() == [3.0, 3.0, 3.0]


def test_an_epochs_last_batch_is_short() -> None:
    work, sizes = Work(batch_size=32), np.array([36, 64, 5, 0])
    charged = [replace(work, steps=steps).samples(sizes).tolist() for steps in (1, 2, 3, 6)]
    assert charged == [[32, 32, 5, 0], [36, 64, 10, 0], [68, 96, 15, 0], [108, 192, 30, 0]]
    every = replace(work, steps=2, epochs=9, passes=2.0, gradients=1.0)
    assert every.samples(sizes).tolist() == [108.0, 192.0, 25.0, 0.0]


@pytest.mark.parametrize(
    ("work", "steps"), [(Work(batch_size=8, epochs=2), [26, 14, 6]), (Work(batch_size=8, steps=4), [4, 4, 4])]
)
def test_steps_of_a_training(work: Work, steps: list[int]) -> None:
    assert work.num_steps(SIZES).tolist() == steps


@pytest.mark.parametrize(
    ("law", "median"),
    [
        (Constant(3.0), 3.0),
        (LogNormal(median=3.0, sigma=0.5), 3.0),
        (Uniform(low=2.0, high=4.0), 3.0),
        (Pareto(best=6.0, alpha=1.0), 3.0),  # P(1 + Pareto > x) = 1 / x, so the median of the time is 2
    ],
)
def test_laws_have_their_medians(law: Any, median: float) -> None:
    drawn = law.draw(40_001, np.random.default_rng(0))
    assert np.median(drawn) == pytest.approx(median, rel=0.02)
    assert (drawn >= 0).all()


def test_a_log_normal_law_has_its_spread() -> None:
    drawn = LogNormal(median=3.0, sigma=0.5).draw(40_001, np.random.default_rng(0))
    assert np.log(drawn).std() == pytest.approx(0.5, rel=0.02)


def test_a_heavy_tail_is_heavy() -> None:
    times = 1 / Pareto(best=1.0, alpha=1.5).draw(100_000, np.random.default_rng(0))
    assert times.min() >= 1
    assert (times > 10).mean() == pytest.approx(10**-1.5, rel=0.1)


def test_each_clients_device_is_drawn_once_by_seed() -> None:
    devices = Devices(samples_per_s=LogNormal(median=1.0, sigma=1.0))
    first, again, other = (fleet(devices, seed=seed).table(SIZES).samples_per_s.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 3


def test_luck_is_a_function_of_seed_round_and_client_alone() -> None:
    devices = Devices(dropout=0.5, stragglers=0.5)
    whole = devices.luck(3, np.arange(40), 0)
    part = devices.luck(3, np.array([30, 7]), 0)
    assert part.slowdown.tolist() == [whole.slowdown[30], whole.slowdown[7]]
    assert part.dropped.tolist() == [whole.dropped[30], whole.dropped[7]]
    assert devices.luck(4, np.arange(40), 0).dropped.tolist() != whole.dropped.tolist()


def test_luck_has_its_probabilities() -> None:
    luck = Devices(dropout=0.3, stragglers=0.6).luck(1, np.arange(4000), 0)
    assert luck.dropped.mean() == pytest.approx(0.3, abs=0.03)
    slow = luck.slowdown > 1
    assert slow.mean() == pytest.approx(0.6, abs=0.03)
    assert (1 / luck.slowdown[slow]).mean() == pytest.approx(0.5, abs=0.03)  # the share of the work done in time
    assert luck.slowdown.min() == 1


def test_a_lost_client_is_known_to_be_lost_on_its_way() -> None:
    sent = fleet(Devices(**EQUAL, dropout=0.5)).dispatch(1, list(range(3)) * 20, SIZES, down_bytes=20)
    lost = sent.luck.dropped
    assert 0 < lost.sum() < 60
    whole = sent.other_s + sent.compute_s + 0.5
    assert (sent.seconds(5.0)[~lost] == whole[~lost]).all()
    assert sent.seconds(5.0)[lost].tolist() == (sent.luck.lost_at * whole)[lost].tolist()


def test_profiles_have_their_shares_and_numbers() -> None:
    kinds = {"slow": {"share": 3, "samples_per_s": 10.0}, "fast": {"share": 1, "samples_per_s": 99.0, "latency_s": 1.0}}
    table = Profiles(kinds=kinds).table(np.full(4000, 5), np.random.default_rng(0))
    slow = table.samples_per_s == 10.0
    assert slow.mean() == pytest.approx(0.75, abs=0.03)
    assert set(table.samples_per_s.tolist()) == {10.0, 99.0}
    assert (table.latency_s == ~slow).all()


def test_days_go_up_and_down() -> None:
    days = SineDays(mean=0.5, amplitude=0.4, day_s=80.0, slot_s=1.0)
    shares = {time: days.at(time, 20_000, 0).mean() for time in (0.0, 20.0, 40.0, 60.0)}
    assert shares == pytest.approx({0.0: 0.5, 20.0: 0.9, 40.0: 0.5, 60.0: 0.1}, abs=0.015)
    assert (days.at(20.0, 100, 0) == days.at(20.9, 100, 0)).all()  # one slot
    assert days.next_change(20.9) == 21.0
    assert days.next_change(21.0) == 22.0
    spread = SineDays(mean=0.5, amplitude=0.5, day_s=80.0, slot_s=1.0, spread=1.0)
    assert [spread.at(time, 20_000, 0).mean() for time in (0.0, 20.0)] == pytest.approx([0.5, 0.5], abs=0.015)


def test_intervals_repeat() -> None:
    trace = Intervals([np.array([1.0, 5.0]), np.array([])], [np.array([2.0, 8.0]), np.array([])], np.array([10.0, 7.0]))
    seen = [trace.at(time, 3, 0).tolist() for time in (0.5, 1.0, 2.0, 5.5, 8.0, 11.5)]
    assert [row[0] for row in seen] == [False, True, False, True, False, True]
    assert all(row[1] is False and row[2] == row[0] for row in seen)
    assert [trace.next_change(time) for time in (0.0, 1.0, 6.0, 15.0)] == [1.0, 5.0, 11.0, 21.0]


@st.composite
def traces(draw: Any) -> Intervals:
    """Up to three traces with fractional seconds, of which the first is active and not always."""
    found: list[list[np.ndarray]] = [[], []]
    periods = [draw(st.floats(0.3, 9000.0)) for _ in range(draw(st.integers(1, 3)))]
    for period in periods:
        places = sorted(draw(st.lists(st.integers(1, 999), min_size=2, max_size=6, unique=True)))
        for kind, times in zip(found, (places[0::2], places[1::2]), strict=True):
            kind.append(np.array(times[: len(places) // 2]) / 1000 * period)
    return Intervals(*found, np.array(periods))


@given(traces(), st.floats(0.0, 1e7))
@settings(max_examples=200, deadline=None)
def test_a_traces_next_change_is_one(trace: Intervals, start: float) -> None:
    """Each is the first representable time at which a trace has become active, and none is left out."""
    now, num = start, len(trace.active)
    for _ in range(8):
        later = trace.next_change(now)
        assert later > now
        just_before = math.nextafter(later, 0)
        assert (trace.at(later, num, 0) & ~trace.at(just_before, num, 0)).any()
        waits = [
            rise - now % period if rise > now % period else rise + (period - now % period)
            for rises, period in zip(trace.active, trace.periods.tolist(), strict=True)
            for rise in rises.tolist()
        ]
        assert later == pytest.approx(now + min(waits), rel=1e-15, abs=1e-12)
        now = later


@pytest.mark.parametrize("slot_s", [0.1, 0.3, 0.7, 1.1, 3.3, 33.3, 1 / 3, 86400 / 7])
def test_every_slot_is_reached(slot_s: float) -> None:
    days, now = SineDays(slot_s=slot_s), 0.0
    for slot in range(3000):
        assert math.floor(now / slot_s) == slot
        now = days.next_change(now)
    assert days.next_change(8.1) > 8.1


def test_intervals_that_touch_are_one() -> None:
    trace = Intervals([np.array([0.0, 2.0, 5.0, 5.0])], [np.array([2.0, 3.0, 5.0, 10.0])], np.array([10.0]))
    assert [trace.next_change(time) for time in (0.0, 4.0, 5.0)] == [5.0, 5.0, 15.0]
    always = Intervals([np.array([0.0])], [np.array([10.0])], np.array([10.0]))
    assert always.next_change(3.0) == math.nextafter(3.0, 4.0)


@pytest.mark.parametrize("suffix", ["json", "pickle"])
def test_fedscales_traces_are_read(tmp_path: Path, suffix: str) -> None:
    def written(name: str, value: Any) -> str:
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(json.dumps(value).encode() if suffix == "json" else pickle.dumps(value))
        return str(path)

    capacity = written("capacity", {"1": {"computation": 20.0, "communication": 8.0}})
    table = FedScaleDevices(path=capacity).table(SIZES, np.random.default_rng(0))
    assert table.samples_per_s.tolist() == pytest.approx([1000 / 60] * 3)  # three times 20 ms a sample
    assert table.up_bytes_per_s.tolist() == table.down_bytes_per_s.tolist() == [1000.0] * 3  # 8 kbit/s
    rows = {"1": {"active": [10, 50], "inactive": [5, 20], "finish_time": 60, "duration": 25, "model": "x"}}
    behaviour = FedScaleAvailability(path=written("behaviour", rows))
    seen = {time: behaviour.at(time, 1, 0)[0] for time in (2.0, 7.0, 15.0, 30.0, 55.0, 62.0)}
    assert seen == {2.0: True, 7.0: False, 15.0: True, 30.0: False, 55.0: True, 62.0: True}


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_a_pickle_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.pickle").write_bytes(pickle.dumps({"1": Harmful()}))
    with pytest.raises(ValueError, match=r"is no trace: it has a builtins\.print, where only numbers"):
        _ = FedScaleDevices(path=str(tmp_path / "trace.pickle")).capacities
    assert capsys.readouterr().out == ""


NUMBERS = r"must be a list of finite numbers"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"active": [math.nan]}, rf"has active=\[NaN\]: {NUMBERS}"),
        ({"inactive": [math.inf]}, rf"has inactive=\[Infinity\]: {NUMBERS}"),
        ({"active": ["x"]}, rf'has active=\["x"\]: {NUMBERS}'),
        ({"active": "x"}, rf'has active="x": {NUMBERS}'),
        ({"active": 3}, rf"has active=3: {NUMBERS}"),
        ({"active": [[1], [2, 3]]}, rf"has active=\[\[1\], \[2, 3\]\]: {NUMBERS}"),
        ({"active": None}, rf"has active=null: {NUMBERS}"),
        ({"active": [10**400]}, rf"has active=\[10+\.\.\.: {NUMBERS}"),
        ({"finish_time": math.nan}, r"has finish_time=NaN: must be a positive, finite number"),
        ({"finish_time": 0}, r"has finish_time=0: must be a positive"),
        ({"finish_time": "x"}, r'has finish_time="x": must be a positive'),
        ({"finish_time": 15}, r"active and inactive times must be from 0 to 15, after which it repeats"),
        ({"inactive": [12, 20]}, r"active and inactive times must alternate in order"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_device(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    right = {"active": [10], "inactive": [20], "finish_time": 60}
    (tmp_path / "trace.json").write_text(json.dumps({"7": right, "b": {**right, **wrong}}))
    devices = Devices(availability=FedScaleAvailability(path=str(tmp_path / "trace.json")))
    with pytest.raises(ValueError, match=rf"devices\.availability\.path=.*trace\.json: device b:? ?{message}"):
        devices.check(SIZES, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"a": {"computation": math.nan, "communication": 1}},
            "device a has computation=NaN: must be a positive, finite",
        ),
        ({"a": {"computation": 1}}, "device a has communication=null: must be a positive, finite number"),
        ({"a": "fast"}, 'device a is "fast": must be a mapping'),
        ([1], "is no trace: it must have a mapping for each device"),
    ],
)
def test_wrong_capacities_are_refused_with_their_device(tmp_path: Path, rows: Any, message: str) -> None:
    (tmp_path / "trace.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=rf"devices\.path=.*trace\.json: {message}"):
        FedScaleDevices(path=str(tmp_path / "trace.json")).check(SIZES, 0)


def test_a_trace_in_which_nobody_is_active_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text('{"a": {"active": [], "inactive": [], "finish_time": 0}}')
    with pytest.raises(ValueError, match=r"trace\.json: no device is ever active"):
        FedScaleAvailability(path=str(tmp_path / "trace.json")).at(0.0, 1, 0)


class Own(Devices):
    """Devices with a wrong table."""

    def __init__(self, **numbers: Any) -> None:
        super().__init__()
        self.numbers = numbers

    def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Table:
        return replace(super().table(sizes, rng), **self.numbers)

    class Stands(SineDays):
        """An availability that the clock would stand still with, of one client."""

        def at(self, time_s: float, num_clients: int, seed: int) -> np.ndarray:
            return super().at(time_s, 1, seed)

        def next_change(self, time_s: float) -> float:
            return time_s


WILD = LogNormal(median=1.0, sigma=1000.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Devices(samples_per_s=-1.0),
            r"devices\.samples_per_s=-1\.0: must be a number, at least 0, null, or a",
        ),
        (lambda: Devices(samples_per_s=0.0).drawn(SIZES, 0), r"must be positive, at least 1e-30, client 0 has 0 \(Dev"),
        (lambda: Devices(latency_s=None).check(SIZES, 0), r"latency_s: must be at least 0 and .*, client 0 has inf"),
        (
            lambda: Devices(samples_per_s=WILD).drawn(SIZES, 0),
            r"devices\.samples_per_s: must be positive, .* has .* \(D",
        ),
        (lambda: Own(samples_per_s=[1, -2, 3]).drawn(SIZES, 0), r"client 1 has -2 \(Own\)"),
        (lambda: Own(up_bytes_per_s=[1, 2, math.nan]).drawn(SIZES, 0), r"up_bytes_per_s: .*, client 2 has nan \(Own\)"),
        (
            lambda: Own(latency_s=[1, 2]).drawn(SIZES, 0),
            r"Own\.table returns latency_s of the shape \(2,\): must be one",
        ),
        (lambda: Devices(availability=Own.Stands()).check(SIZES, 0), r"Stands\.at returns the shape \(1,\): must be"),
        (
            lambda: fleet(Devices(availability=Own.Stands())).next_change(3.0),
            r"Stands\.next_change\(3\.0\) is 3\.0: must",
        ),
        (
            lambda: Devices(samples_per_s=Pareto(best=2.0, alpha=1.5), epoch_s=1.0),
            r"samples_per_s=Pareto\(best=2\.0, alpha=1\.5\) and epoch_s=1\.0 exclude each other: samples_per_s=null",
        ),
        (lambda: Profiles(kinds={"a": {"share": "abc"}}), r"kinds\.a\.share=abc: must be a positive, finite number"),
        (lambda: Profiles(kinds={"a": 3}), r"devices\.kinds\.a=3: must be a mapping of samples_per_s"),  # type: ignore[dict-item]
        (lambda: Devices(dropout=1.0), r"devices\.dropout=1\.0: must be at least 0 and below 1"),
        (lambda: Devices(stragglers=1.5), r"devices\.stragglers=1\.5: must be in \[0, 1\]"),
        (lambda: Devices(availability=0.5), r"devices\.availability=0\.5: must be an Availability"),  # type: ignore[arg-type]
        (lambda: LogNormal(median=0.0, sigma=1.0), "median=0.0 must be positive"),
        (lambda: LogNormal(median=1.0, sigma=-1.0), "sigma=-1.0"),
        (lambda: Pareto(best=1.0, alpha=0.0), "alpha=0.0 must be positive"),
        (lambda: Uniform(low=2.0, high=1.0), "low=2.0, high=1.0"),
        (lambda: Profiles(kinds={}), "there must be at least one"),
        (lambda: Profiles(kinds={"a": {"speed": 1.0}}), r"devices\.kinds\.a\.speed: there is no such number"),
        (lambda: Profiles(kinds={"a": {"share": 0}}), r"devices\.kinds\.a\.share=0: must be a positive"),
        (lambda: SineDays(mean=0.9, amplitude=0.2), "mean - amplitude and mean"),
        (lambda: SineDays(mean=0.0, amplitude=0.0), "nobody would ever be available"),
        (lambda: SineDays(slot_s=0.0), "slot_s=0.0"),
        (lambda: SineDays(spread=2.0), r"spread=2\.0: must be in"),
        (lambda: Intervals([np.array([3.0])], [np.array([1.0])], np.array([9.0])), "must alternate in order"),
        (lambda: Intervals([np.array([])], [np.array([])], np.array([9.0])), "nobody would ever be available"),
        (lambda: FedScaleDevices(path="no.json").capacities, r"devices\.path=no\.json: there is no such file"),
    ],
)
def test_wrong_settings_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
