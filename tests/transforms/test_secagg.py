"""Secure aggregation in a run: the bits of a run without it, bytes, drop-outs, refusals."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flrl.aggregation import EveryUpdate, Mean, MeanReducer, Median, stats_of
from flrl.aggregation.exact_sum import ExactSum
from flrl.backends import SerialBackend
from flrl.callbacks import Callbacks
from flrl.devices import Devices
from flrl.errors import RefusedMessageError, SecureAggregationError, TooFewUpdatesError
from flrl.sampling import AllClients, ImportanceSampler, PowerOfChoice, UniformSampler
from flrl.scheduling import Asynchronous, Buffered
from flrl.secagg import STAGES
from flrl.strategies import FedAvg, Scaffold, Strategy
from flrl.transforms import ClipNorm, GaussianNoise, GradientNoise, SecAgg, TopK, Transform
from flrl.transforms.masked_sum import MaskedReducer, integers, parts
from flrl.types import ClientUpdate, Context, RoundRecord, ServerState
from flrl.worker import Worker
from tests.backends.inside import started
from tests.toys import fit, make_worker, setup_of

SGD = partial(torch.optim.SGD, lr=1.0)
SIZES = (9, 12, 5, 7, 11, 8)
DROPOUTS = {"advertise_keys": 0.1, "share_keys": 0.1, "masked_input": 0.15, "unmasking": 0.1}


class Missing(Transform):
    """Without any protocol, the same clients send nothing as under a `SecAgg`."""

    def __init__(self, secagg: SecAgg) -> None:
        self.secagg = secagg

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        stage = self.secagg._session(2, context).lost.get(update.client_id, "unmasking")
        return replace(update, dropped=None if stage == "unmasking" else "missing"), memory, {}


def worker_of(make: Callable[..., Strategy], seed: int = 0, rounds: int = 2, **transforms: Transform) -> Worker:
    strategy = make(rounds=rounds, sampler=AllClients(), server_optimizer=SGD, transforms=transforms)
    return make_worker(strategy, sizes=SIZES, seed=seed)


def run(make: Callable[..., Strategy], seed: int = 0, **transforms: Transform) -> tuple[list[str], list[RoundRecord]]:
    records = fit(worker_of(make, seed, **transforms))[1]
    return [record.digest for record in records], records


EARLIER: dict[str, tuple[Callable[..., Strategy], dict[str, Transform]]] = {
    "fedavg": (FedAvg, {}),
    "scaffold": (Scaffold, {}),
    "clipped": (FedAvg, {"clip": ClipNorm(max_norm=0.05), "noise": GradientNoise(std=0.01)}),
    "noisy": (FedAvg, {"clip": ClipNorm(max_norm=0.05), "noise": GaussianNoise(std=0.01)}),
}


@pytest.mark.parametrize("name", EARLIER)
def test_a_run_has_the_bits_that_it_has_without(name: str) -> None:
    make, transforms = EARLIER[name]
    secagg = SecAgg(neighbours=4 if name == "scaffold" else None)
    assert run(make, **transforms, secagg=secagg)[0] == run(make, **transforms)[0]


def test_server_noise_may_stand_behind() -> None:
    noise = GaussianNoise(std=0.01)
    assert run(FedAvg, secagg=SecAgg(), noise=noise)[0] == run(FedAvg, noise=noise)[0]


@pytest.mark.parametrize("make", [FedAvg, Scaffold])
def test_with_drop_outs_it_is_the_run_without_those_clients(make: Callable[..., Strategy]) -> None:
    secagg, seed = SecAgg(dropouts=DROPOUTS), 33
    found, records = run(make, seed, secagg=secagg)
    same, plain = run(make, seed, missing=Missing(secagg))
    assert found == same
    assert found != run(make, seed)[0]
    lost = [record.metrics["secagg/lost"] for record in records]
    assert lost == [record.metrics["clients/rejected"] for record in plain]
    assert sum(lost) == 3
    reasons = {report.rejected for report in records[-1].reports} - {None}
    assert reasons <= {f"secagg: dropped out in {stage}" for stage in STAGES[:3]}


def states(make: Callable[..., Strategy], backend: Any, seed: int, **transforms: Transform) -> ServerState:
    worker = worker_of(make, seed, **transforms)
    layout = worker.model.layout
    state = worker.strategy.initialize(worker.model.vector.clone(), layout)
    return worker.strategy.fit(state, backend=backend, layout=layout, seed=seed, callbacks=Callbacks([]))[0]


def test_workers_add_up_and_the_controller_uncovers_the_sum_alone() -> None:
    """What workers send is no sum of updates, and their sums make the serial run's bits."""
    secagg = SecAgg(dropouts={"masked_input": 0.2})
    for trains_here in (False, True):
        make = partial(worker_of, Scaffold, 1, secagg=secagg)
        backend = started(make, 2, trains_here=trains_here)
        serial = SerialBackend()
        serial.start(make())
        found = states(Scaffold, backend, 1, secagg=secagg)
        assert torch.equal(found.vector, states(Scaffold, serial, 1, secagg=secagg).vector)
        backend.close()


def round_of(worker: Worker) -> tuple[Any, Any, list[Any]]:
    state = worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout)
    broadcast, tasks = worker.strategy.plan(state, worker.data.sizes, worker.seed, worker.model.layout)
    reducer, reports = worker.train(broadcast, tasks, lambda report: None)
    return broadcast, reducer, reports


def test_bytes_are_those_of_the_messages() -> None:
    for neighbours, seed, lost in ((None, 33, 2), (4, 50, 1), (4, 78, 1), (4, 110, 0)):
        record = run(FedAvg, seed, secagg=SecAgg(neighbours=neighbours, dropouts=DROPOUTS))[1][-1]
        assert record.metrics["secagg/lost"] == lost
        metrics = record.metrics
        up = sum(metrics[f"secagg/{stage}_up_bytes"] for stage in STAGES)
        assert metrics["comm/up_bytes"] == up == sum(report.up_bytes for report in record.reports)
        down = sum(metrics[f"secagg/{stage}_down_bytes"] for stage in STAGES)
        assert metrics["comm/down_bytes"] == down + 6 * 18 * 4
    clients, words = 6, 2 * (18 + 1)
    each = 73 + (13 + 86 * 5) + (17 + 8 * words) + (13 + 38 * 6)
    assert run(FedAvg, secagg=SecAgg())[1][0].metrics["comm/up_bytes"] == clients * each


class Breaking(Transform):
    """Client 2 sends infinity, and client 3 a number that is too large."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        value = {2: float("inf"), 3: 1e30}.get(update.client_id)
        vectors = {} if value is None else {"update": torch.full_like(update.vectors["update"], value)}
        return replace(update, vectors={**update.vectors, **vectors}), memory, {}


def test_what_cannot_be_summed_is_a_drop_out_before_the_masked_input() -> None:
    found, records = run(FedAvg, breaking=Breaking(), secagg=SecAgg())
    assert found == run(FedAvg, breaking=Breaking())[0]
    rejected = {report.client_id: report.rejected for report in records[-1].reports if report.rejected}
    assert rejected == {2: "update is not finite", 3: "update is too large to be summed exactly (1e+30)"}
    up = {report.client_id: report.up_bytes for report in records[-1].reports}
    assert up[2] == up[3] == 73 + 13 + 86 * 5
    assert records[-1].metrics["comm/up_bytes"] == sum(
        records[-1].metrics[f"secagg/{stage}_up_bytes"] for stage in STAGES
    )


def test_below_the_threshold_there_is_no_model() -> None:
    seen: list[ServerState] = []
    worker = worker_of(FedAvg, secagg=SecAgg(threshold=0.9, dropouts={"unmasking": 0.5}))
    with pytest.raises(
        SecureAggregationError, match=r"^secagg: round 1: after stage 4 of 4 \d holders of client 0's s"
    ):
        seen.append(fit(worker)[0])
    assert seen == []
    most = worker_of(FedAvg, secagg=SecAgg(dropouts={"advertise_keys": 0.9}))
    with pytest.raises((SecureAggregationError, TooFewUpdatesError)):
        fit(most)


def test_the_report_says_nothing_of_the_update() -> None:
    _, reducer, reports = round_of(worker_of(FedAvg, secagg=SecAgg()))
    assert isinstance(reducer, MaskedReducer)
    assert {report.checksum for report in reports} == {""}
    assert not any("update/norm" in report.metrics for report in reports)


def test_a_client_is_added_once() -> None:
    worker = worker_of(FedAvg, secagg=SecAgg())
    broadcast, reducer, _ = round_of(worker)
    update = ClientUpdate(0, 9.0, {"update": torch.ones(18, dtype=torch.float64)}, {}, 1)
    with pytest.raises(RefusedMessageError, match="client 0 has sent its masked vector already"):
        reducer.add(update, stats_of(update))
    other = worker.reducer(broadcast)
    other.add(update, stats_of(update))
    with pytest.raises(RefusedMessageError, match="client 0 has sent its masked vector already"):
        reducer.merge([other.parcel()])


def test_integers_are_the_exact_sum() -> None:
    """Multiples of 2^-24 and of 2^-64, negative ones too; sums of low parts are carried."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(np.concatenate([rng.normal(size=500) * 1e3, [0.0, -1.5, 2.0**-64, -(2.0**23), 3e-9]]))
    plain, words = ExactSum(len(values)), np.zeros(2 * len(values), np.uint64)
    for factor in (1.0, -0.3, 1e-7, 1 / 3, 0.7) * 3:
        alone = ExactSum(len(values))
        alone.add(values, factor)
        plain.add(values, factor)
        words += integers(alone.parts)
    assert torch.equal(parts(words).sum(0), plain.value())
    one = ExactSum(1)
    one.add(torch.tensor([-1.5 + 2.0**-30], dtype=torch.float64))
    assert integers(one.parts).view(np.int64).tolist() == [-3 * 2**23, 2**34]
    many = parts(np.array([1, 3 * 2**40 + 5], np.int64).view(np.uint64))  # 3 quanta of the high part in the low one
    assert many.flatten().tolist() == [4 * 2.0**-24, 5 * 2.0**-64]
    for wrong in (2**52 + 1, -(2**52) - 1):
        with pytest.raises(OverflowError, match="secagg: the sum leaves the exact range"):
            parts(np.array([wrong, 0], np.int64).view(np.uint64))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rule": ({"aggregator": Median()}, r"hides each update from the server, and Median needs them"),
    "rows": ({"aggregator": EveryUpdate()}, r"and EveryUpdate needs them: strategy/aggregator=mean$"),
    "cosines": ({"aggregator": Mean(cosines=True)}, r"^strategy\.aggregator\.cosines=true: s hides updates from the"),
    "one": ({"sampler": UniformSampler(num=1)}, r"the sum of one client's update is that update: strategy\.sampler"),
    "norms": ({"sampler": ImportanceSampler(num=2)}, r"^strategy\.sampler\.by=norm: s hides updates from the server"),
    "late": ({"schedule": Buffered(buffer=2)}, r"^strategy\.transforms\.s: needs all clients of a round to send at on"),
    "asynchronous": ({"schedule": Asynchronous()}, r"^strategy\.transforms\.s: needs all clients of a round to send a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_more_than_the_sum_is_refused(name: str) -> None:
    options, message = REFUSED[name]
    strategy = FedAvg(**{"rounds": 1, "sampler": AllClients(), "server_optimizer": SGD, **options}, transforms=ONE)
    devices = Devices(epoch_s=1.0) if "schedule" in options else None
    with pytest.raises(ValueError, match=message):
        setup_of(strategy=strategy, devices=devices).check()


class Encoding(Transform):
    encodes = True


ONE = {"s": SecAgg()}
ORDERS: dict[str, tuple[Sequence[Transform], str]] = {
    "clipped after": (
        [SecAgg(), ClipNorm(max_norm=1.0)],
        r"^strategy\.transforms\.1: nothing can change a masked upda",
    ),
    "encoded": (
        [Encoding(), SecAgg()],
        r"^strategy\.transforms\.0: what it encodes cannot be summed, and 1 sends",
    ),
    "compressed": ([TopK(share=0.5), SecAgg()], r"^strategy\.transforms\.1: hides each update, which 0 encodes: leave"),
    "twice": ([SecAgg(), SecAgg()], r"^strategy\.transforms\.1: 0 hides updates already"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_masks_come_last(name: str) -> None:
    order, message = ORDERS[name]
    transforms = {str(place): transform for place, transform in enumerate(order)}
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=transforms)
    with pytest.raises(ValueError, match=message):
        setup_of(strategy=strategy).check()


def test_samplers_that_need_losses_go_with_it() -> None:
    strategy = FedAvg(rounds=2, sampler=PowerOfChoice(num=2, candidates=3), server_optimizer=SGD, transforms=ONE)
    setup_of(strategy=strategy).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.4}, r"threshold=0\.4: must be at least 0\.5 and below 1$"),
        ({"threshold": 1.0}, r"threshold=1\.0: must be at least 0\.5 and below 1$"),
        ({"neighbours": 3}, r"neighbours=3: must be even, at least 2; or 'auto', or null$"),
        ({"neighbours": 0}, r"neighbours=0: must be even"),
        ({"neighbours": "all"}, r"neighbours=all: must be an even number, 'auto' or null$"),
        ({"dropouts": {"masked_input": 1.0}}, r"dropouts\.masked_input=1\.0: must be at least 0 and below 1$"),
        ({"dropouts": {"third": 0.1}}, r"dropouts\.third: there are the stages advertise_keys, share_keys, masked_inp"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^strategy\.transforms\.secagg\.{message}"):
        SecAgg(**settings)


def test_only_sums_can_be_masked() -> None:
    context = Context(1, 0, None, (0, 1), 2.0, torch.Generator())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RowsReducer is no sum"):
        SecAgg().reducer(Median().reducer({"update": 2}, total_weight=2.0), context)
    assert isinstance(SecAgg().reducer(MeanReducer({"update": 2}, total_weight=2.0), context), MaskedReducer)
