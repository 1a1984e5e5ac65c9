"""By brute force: what is released, before noise, moves by at most the bound when a client comes or goes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flrl.backends import SerialBackend
from flrl.recipe import Recipe
from flrl.rounds import initial_state
from flrl.sampling import AllClients, PoissonSampler
from flrl.strategies import FedAvg, Scaffold
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LocalProblem
from flrl.transforms import FTRL, AdaptiveDP, CentralDP, DistributedDP, Transform
from flrl.transforms.apply import on_server, sizes_after
from flrl.types import Broadcast, ClientUpdate, ServerState
from flrl.worker import Worker
from tests.strategies.cells import STRATEGIES, config_of
from tests.toys import Linear, Normed, Notes, fit, make_worker
from tests.transforms.given import context, update

SGD = partial(torch.optim.SGD, lr=1.0)
EXPECTED = 2.0
REFUSED = {
    "afl": "weights follow their losses",
    "centralized": "pools the samples",
    "cfl": "divides clients by their updates",
    "fedamp": "compares clients' models",
    "feddistill": "divides by counts",
    "dsfl": "send no update",
    "fedexp": "norms of single updates",
    "fedgems": "divides by sums",
    "fedmd": "send no update",
    "fednova": "numbers of steps",
    "ifca": "cluster by loss",
    "local": "send nothing",
    "qfedavg": "mean of clients' losses",
}
"""Strategies whose step needs more than means, or that take no transforms at all, and a part of why."""


def released(worker: Worker, state: ServerState, cohort: Sequence[int]) -> dict[str, Tensor]:
    """What the strategy would be given of a cohort; the mechanism is one without noise."""
    strategy, layout = worker.strategy, worker.model.layout
    broadcast, tasks = strategy._planned(state, state.round + 1, cohort, worker.data.sizes, layout)
    sizes = sizes_after(strategy.transforms, strategy.vector_sizes(layout))
    means, received = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}, 0.0
    if tasks:
        reducer, _ = worker.train(replace(broadcast, total_weight=1e6), tasks, lambda report: None)
        found, received = reducer.result()
        means |= found
    vectors, *_ = on_server(
        strategy.transforms, means, state.variables, broadcast, layout, 0, received=received, expected=EXPECTED
    )
    return dict(vectors)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor], order: int = 2) -> float:
    parts = [(one[name] - other[name]).flatten() for name in one]
    return float(torch.linalg.vector_norm(torch.cat(parts), order)) if parts else 0.0


def moved(worker: Worker, state: ServerState, others: Sequence[int] = (0, 2), client: int = 1) -> float:
    """How far one client moves what is released of others."""
    order = getattr(next(iter(worker.strategy.transforms.values())), "order", 2)
    with_it = released(worker, state, sorted([*others, client]))
    return distance(with_it, released(worker, state, others), order)


MECHANISMS: dict[str, Transform] = {
    "flat": CentralDP(clip=0.01, noise_multiplier=0.0),
    "per layer": CentralDP(clip=0.01, noise_multiplier=0.0, per_layer=True),
    "laplace": CentralDP(clip=0.01, noise_multiplier=0.0, kind="laplace"),
    "laplace per layer": CentralDP(clip=0.01, noise_multiplier=0.0, kind="laplace", per_layer=True),
    "adaptive": AdaptiveDP(clip=0.01, noise_multiplier=0.0),
    "ftrl": FTRL(clip=0.01, noise_multiplier=0.0, sensitivity=1.0),
    "distributed": DistributedDP(clip=0.01, noise_multiplier=0.0, survivors=2),
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_client_moves_variates_and_update_together_by_the_bound(name: str) -> None:
    """Clients are far above the bound, and have 20, 30 and 40 samples: the bound is met, whatever their number."""
    strategy = Scaffold(
        rounds=2, sampler=AllClients(), server_optimizer=SGD, transforms={"dp": MECHANISMS[name]}, option=2
    )
    worker = make_worker(strategy, module=Linear(lr=1.0))
    state, _ = fit(worker)
    for others, client in (((0, 2), 1), ((1, 2), 0), ((), 2)):
        found = moved(worker, replace(state, round=1), others, client)
        if name != "adaptive":
            assert found == pytest.approx(0.01 / EXPECTED, rel=1e-9)
        else:  # the bound of this round is that of the state
            assert found == pytest.approx(float(state.variables["transforms/dp/clip"]) / EXPECTED, rel=1e-9)


def test_buffers_are_within_the_bound() -> None:
    dp = CentralDP(clip=0.01, noise_multiplier=0.0)
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms={"dp": dp})
    worker = make_worker(strategy, module=Normed())
    state = initial_state(strategy, worker.model.vector.clone(), worker.model.layout, 0)
    assert moved(worker, state) == pytest.approx(0.01 / EXPECTED, rel=1e-9)


class Spoiling(Linear):
    """A client with 30 samples sends what is not finite; the one with 40 something enormous."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if len(batch[0]) == 30 else loss * 1e30


def test_a_rejected_client_counts_as_nothing_and_a_large_one_as_the_bound() -> None:
    dp = CentralDP(clip=0.5, noise_multiplier=0.0)
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms={"dp": dp})
    worker = make_worker(strategy, module=Spoiling(), trainer=EagerTrainer(batch_size=100))
    state = initial_state(strategy, worker.model.vector.clone(), worker.model.layout, 0)
    assert moved(worker, state, (0, 2), 1) == 0
    assert moved(worker, state, (0, 1), 2) == pytest.approx(0.5 / EXPECTED)
    alone = replace(worker, strategy=FedAvg(rounds=1, sampler=_Only(1), server_optimizer=SGD, transforms={"dp": dp}))
    after, history = fit(alone, state=state)
    assert history[-1].metrics["clients/rejected"] == 1  # and the run goes on
    assert torch.equal(after.vector, state.vector)


class _Only(AllClients):
    def __init__(self, client: int) -> None:
        self.client = client

    def __call__(self, num_clients: int, **given: Any) -> Any:
        return super().__call__(num_clients, **given)[self.client : self.client + 1]


numbers = st.floats(-1e6, 1e6, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=4, max_size=4), st.lists(numbers, min_size=1, max_size=3), st.floats(1e-3, 1e3))
def test_nothing_that_is_sent_is_above_the_bound(own: list[float], further: list[float], clip: float) -> None:
    sent = update(*own, control=torch.tensor(further, dtype=torch.float64))
    for kind, order in (("gaussian", 2), ("laplace", 1)):
        for per_layer in (False, True):
            dp = CentralDP(clip=clip, noise_multiplier=1.0, kind=kind, per_layer=per_layer)  # type: ignore[arg-type]
            found, _, _ = dp.client(sent, {}, context())
            zeros = {name: torch.zeros_like(vector) for name, vector in found.vectors.items()}
            assert distance(found.vectors, zeros, order) <= clip * (1 + 1e-12)
            assert found.weight == 1.0
            if distance(sent.vectors, zeros, order) <= clip / 5:  # within each of five parts
                assert all(torch.equal(found.vectors[name], sent.vectors[name]) for name in zeros)


@pytest.mark.parametrize(("kind", "bounds"), [("gaussian", 1 / math.sqrt(5)), ("laplace", 1 / 5)])
def test_layers_have_equal_parts_of_the_bound(kind: Any, bounds: float) -> None:
    dp = CentralDP(clip=1.0, noise_multiplier=1.0, kind=kind, per_layer=True)
    sent = update(9.0, -0.1, 3.0, 0.0, control=torch.tensor([3.0, 4.0], dtype=torch.float64))
    found, _, numbers = dp.client(sent, {}, context())
    scale = 5.0 if kind == "gaussian" else 7.0
    assert found.vectors["update"].tolist() == pytest.approx([bounds, -0.1, bounds, 0.0])
    assert found.vectors["control"].tolist() == pytest.approx([3 / scale * bounds, 4 / scale * bounds])
    assert numbers == {"clipped": 3 / 5}


def dp_of(strategy: str, **more: Any) -> Recipe:
    config = config_of(strategy, "eager")
    dp = {"_target_": "flrl.transforms.CentralDP", "clip": 0.02, "noise_multiplier": 0.0, **more}
    sampler = {"_target_": "flrl.sampling.AllClients"}
    aggregator = {"_target_": "flrl.aggregation.Mean"} if strategy not in ("cfl", "fedamp") else {}
    given = {"transforms": {"dp": dp}, "sampler": sampler, **({"aggregator": aggregator} if aggregator else {})}
    return Recipe({**config, "strategy": {**config["strategy"], **given}})


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_within_the_bound_or_refused(name: str) -> None:
    recipe = dp_of(name)
    data = recipe.data()
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"strategy.*{REFUSED[name]}"):
            recipe.spending(data)
        return
    assert recipe.spending(data) is not None
    worker = recipe.worker(data, threads=1, device="cpu")
    state = initial_state(worker.strategy, worker.model.vector.clone(), worker.model.layout, worker.seed)
    backend = SerialBackend()
    backend.start(worker)
    for round in (1, 2, 3):
        assert moved(worker, state, (0, 2, 3), 1) <= 0.02 / EXPECTED * (1 + 1e-9), round
        one = replace_rounds(worker, round)
        state, _ = fit(one, state=state)


def replace_rounds(worker: Worker, rounds: int) -> Worker:
    worker.strategy.rounds = rounds
    return worker


class Peeping(FedAvg):
    """A strategy that looks at whatever it can reach."""

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Any:
        assert not state.memory
        return super().broadcast(state, round, total_weight)

    def aggregate(self, state: ServerState, aggregate: Any, layout: Any) -> ServerState:
        assert not aggregate.reports
        assert not state.memory
        assert (aggregate.total_weight, aggregate.share) == (1.5, 0.5)
        return super().aggregate(state, aggregate, layout)

    def local(self, problem: Any) -> Any:
        trained = yield problem
        return trained.update(problem, memory={"own": torch.ones(1)})


def test_a_strategy_of_ones_own_sees_noisy_means_and_nothing_else() -> None:
    dp = CentralDP(clip=0.01, noise_multiplier=1.0)
    strategy = Peeping(rounds=4, sampler=PoissonSampler(probability=0.5), server_optimizer=SGD, transforms={"dp": dp})
    _, history = fit(make_worker(strategy))
    assert {record.metrics["clients/num"] for record in history if record.round} > {0.0}


def test_an_update_keeps_its_numbers_below_the_bound() -> None:
    sent: ClientUpdate = update(0.1, 0.2, 0.3, 0.4)
    found, memory, numbers = CentralDP(clip=1.0, noise_multiplier=1.0).client(sent, {}, context())
    assert torch.equal(found.vectors["update"], sent.vectors["update"])
    assert (memory, numbers) == ({}, {"clipped": 0.0})


class Asking(FedAvg):
    """Notes what it is told of the cohort."""

    def __init__(self, notes: Notes, **options: Any) -> None:
        super().__init__(**options)
        self.notes = notes

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        self.notes.add(("server", total_weight))
        return super().broadcast(state, round, total_weight)

    def local(self, problem: LocalProblem) -> Local:
        sent, client = problem.broadcast, problem.task.client_id
        self.notes.add(("client", sent.total_weight, tuple(sent.cohort) == (client,)))
        trained = yield problem
        return trained.update(problem)


def test_a_strategy_is_told_nothing_of_who_is_in_the_cohort() -> None:
    """Else one client's presence could be in what all the others send."""
    notes = Notes()
    strategy = Asking(
        notes,
        rounds=3,
        sampler=PoissonSampler(probability=0.5),
        transforms={"dp": CentralDP(clip=1.0, noise_multiplier=1.0)},
        server_optimizer=SGD,
    )
    fit(make_worker(strategy, sizes=[10, 20, 30, 40, 50, 60]))
    told = notes.all()
    assert {what for what in told if what[0] == "server"} == {("server", 3.0)}
    assert {what for what in told if what[0] == "client"} == {("client", 1.0, True)}
