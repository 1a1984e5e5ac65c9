"""IFCA and CFL: one cluster is FedAvg, several are found, each is a federation of its own; against NumPy."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from flrl.aggregation import EveryUpdate, Mean, Median
from flrl.data import TensorSource
from flrl.layout import digest
from flrl.rounds import initial_state
from flrl.runs.checkpoint import load_checkpoint, save_checkpoint
from flrl.sampling import AllClients, PoissonSampler, UniformSampler
from flrl.strategies import CFL, IFCA, FedAvg
from flrl.strategies.cfl import bipartition
from flrl.trainers import EagerTrainer
from flrl.transforms.clip_norm import ClipNorm
from flrl.transforms.gaussian_noise import GaussianNoise
from flrl.types import ServerState
from tests.strategies.personal import (
    DECAY,
    LR,
    NEVER,
    SIZES,
    B,
    Client,
    Federation,
    N,
    averaging,
    batches,
    on_quadratics,
    slope,
)
from tests.strategies.personal import personal as personal_of
from tests.strategies.test_problems import ENGINES
from tests.strategies.test_scaffold import Plain, states
from tests.toys import Linear, fit, make_worker, setup_of

close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
MOMENTUM = partial(torch.optim.SGD, lr=0.7, momentum=0.5)
ADAM = partial(torch.optim.Adam, lr=0.05, eps=1e-3)
ALONE = {"ifca": partial(IFCA, clusters=1), "cfl": partial(CFL, eps1=0.0)}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize(
    "sampler", [UniformSampler(num=2), PoissonSampler(probability=0.4)], ids=["uniform", "poisson"]
)
def test_one_cluster_is_fedavg_bit_for_bit(name: str, sampler: Any) -> None:
    """With momentum and BatchNorm, and rounds in which nobody takes part."""
    options = {"rounds": 5, "sampler": sampler, "server_optimizer": MOMENTUM}
    ends = []
    for make in (ALONE[name], FedAvg):
        torch.manual_seed(0)
        ends.append(fit(make_worker(make(**options), module=Plain())))
    (found, history), (expected, other) = ends
    assert digest(found.vector) == digest(expected.vector)
    assert found.optimizer.keys() == expected.optimizer.keys()
    assert all(torch.equal(found.optimizer[key], value) for key, value in expected.optimizer.items())
    for one, two in zip(history, other, strict=True):
        assert one.metrics["test/loss"] == two.metrics["test/loss"]
        assert one.metrics["comm/down_bytes"] == two.metrics["comm/down_bytes"]
        assert one.metrics.get("comm/up_bytes") == two.metrics.get("comm/up_bytes")


# IFCA.


def loss(w: np.ndarray, client: Client) -> float:
    scores = client[0] @ w[:15].reshape(3, 5).T + w[15:]
    return float((np.log(np.exp(scores).sum(1)) - scores[np.arange(len(scores)), client[1]]).mean())


def ifca(run: Federation, models: list[np.ndarray]) -> Any:
    """Algorithm 1 with model averaging and n_c as weights: the models, and who was last where, after every round."""
    chosen: dict[int, int] = {}
    for round, cohort in enumerate(run.cohorts):
        ends = {}
        for i in cohort:
            client = run.clients[i]
            chosen[i] = int(np.argmin([loss(model, client) for model in models]))
            y = models[chosen[i]].copy()
            for number in range(batches(client)):
                y -= LR * DECAY**round * slope(y, client, number)
            ends[i] = y
        for j, model in enumerate(models):
            members = [i for i in cohort if chosen[i] == j]
            if members:
                total = sum(SIZES[i] for i in members)
                mean = sum((SIZES[i] / total * (ends[i] - model) for i in members), np.zeros_like(model))
                models[j] = model + 0.8 * mean
        yield list(models), dict(chosen)


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_ifca_agrees_with_numpy(num: int | None) -> None:
    run = Federation(
        IFCA(clusters=3, **averaging(5, num, lr=0.8)), source=rotated(SIZES, {1}), seed=3 if num is None else 0
    )
    start = [model.numpy() for model in _first(run.worker)]
    seen = set()
    for state, (models, chosen) in zip(run.states(), ifca(run, start), strict=True):
        for mine, theirs in zip(_models(state), models, strict=True):
            close(mine.numpy(), theirs)
        assert {i: int(memory["cluster"]) for i, memory in state.memory.items()} == chosen
        for i, j in chosen.items():
            close(personal_of(run.worker, state, i).numpy(), models[j])
        seen |= set(chosen.values())
    assert len(seen) > 1


def _models(state: ServerState) -> list[torch.Tensor]:
    return [state.vector, *state.variables.get("clusters", ())]


def _first(worker: Any) -> list[torch.Tensor]:
    """The models before the first round."""
    state = initial_state(worker.strategy, worker.model.vector.clone(), worker.model.layout, worker.seed)
    return _models(state)


def test_the_initial_models_differ_by_the_order_of_their_elements() -> None:
    worker = make_worker(IFCA(clusters=3, **averaging(1)))
    models, again = _first(worker), _first(worker)
    other = _first(make_worker(IFCA(clusters=3, **averaging(1)), seed=1))
    assert torch.equal(models[0], worker.model.vector)
    assert len({digest(model) for model in (*models, *other)}) == 6
    assert all(torch.equal(one, two) for one, two in zip(models, again, strict=True))
    for model in models[1:]:
        for part in (slice(15), slice(15, None)):
            assert sorted(model[part].tolist()) == sorted(models[0][part].tolist())


def rotated(sizes: tuple[int, ...], turned: set[int]) -> TensorSource:
    """Three classes by the largest of the first three inputs; some clients call each class by the next one's name."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(sum(sizes), 5)).astype(np.float32)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    labels = (inputs[:, :3].argmax(1) + np.isin(owner, list(turned))) % 3
    return TensorSource(torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64)))


@pytest.mark.parametrize("make", [IFCA, partial(CFL, eps1=0.03, eps2=1.0)], ids=["ifca", "cfl"])
def test_clients_that_disagree_are_separated(make: Any) -> None:
    """Two of five name classes otherwise: of two models each client's is right, and another's wrong."""
    sizes, turned = (20, 30, 25, 35, 40), {1, 4}
    source, trainer = rotated(sizes, turned), EagerTrainer(batch_size=10, local_epochs=3)
    options = {"sizes": sizes, "source": source, "trainer": trainer, "evaluator": NEVER, "module": _fast(), "seed": 1}
    worker = make_worker(make(**averaging(12)), **options)
    state = fit(worker)[0]
    own = [personal_of(worker, state, client) for client in range(5)]
    assert len({digest(model) for model in own}) == 2
    assert {client for client in range(5) if torch.equal(own[client], own[1])} == turned
    assert min(_accuracy(worker, client, own[client]) for client in range(5)) > 0.9
    assert min(_accuracy(worker, client, own[0]) for client in turned) < 0.3


def _fast() -> Linear:
    torch.manual_seed(1)
    return Linear(lr=0.3)


def _accuracy(worker: Any, client: int, model: torch.Tensor) -> float:
    source = worker.data.splits.train
    chosen = worker.data.train_indices(client)
    scores = source.inputs[chosen] @ model[:15].view(3, 5).T + model[15:]
    return float((scores.argmax(1) == source.targets[chosen]).float().mean())


def test_clusters_reach_the_fixed_points_of_their_clients() -> None:
    """IFCA on quadratics whose curvatures are 4: clients at -2 and 1 share a model, the one at 5 has its own."""
    worker, _ = on_quadratics(IFCA(clusters=2, **averaging(1)), epochs=3, samples=(np.full(3, 4.0), B))
    first = worker.strategy.initialize(torch.zeros(1).double(), worker.model.layout)
    apart = replace(first, variables={"clusters": torch.tensor([[4.0]]).double()})
    state = fit(replace(worker, strategy=IFCA(clusters=2, **averaging(40))), state=apart)[0]
    shared = (N[:2] * B[:2]).sum() / N[:2].sum()
    close([float(model) for model in _models(state)], [shared, 5.0], rtol=0, atol=1e-8)


def test_ifca_sends_all_models_down_and_one_up() -> None:
    _, history = fit(make_worker(IFCA(clusters=3, **averaging(2))))
    for record in history:
        assert record.metrics["comm/down_bytes"] == 3 * 3 * 18 * 4
        assert record.metrics["comm/up_bytes"] == 3 * (18 * 4 + 8)


# CFL.


def test_the_bipartition_has_the_least_similarity_across() -> None:
    """Among all divisions of seven rows, tried one by one."""
    for seed in range(20):
        rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)).double()
        rows = rows / rows.norm(dim=1, keepdim=True)
        similarities = rows @ rows.T
        leaving = bipartition(similarities)
        assert 0 not in leaving

        def across(out: tuple[int, ...], similarities: Any = similarities) -> float:
            kept = [place for place in range(7) if place not in out]
            return float(similarities[list(out)][:, kept].max())

        every = [out for size in range(1, 7) for out in combinations(range(1, 7), size)]
        assert across(tuple(leaving)) == min(map(across, every))


def test_two_rows_are_parted() -> None:
    assert bipartition(torch.ones(2, 2)) == [1]


def cfl(run: Federation, eps1: float, eps2: float) -> Any:
    """Clusters with their models, after every round: lists of clients and vectors."""
    clusters = [([0, 1, 2], run.start)]
    for round in range(len(run.cohorts)):
        after = []
        for members, model in clusters:
            moved = {}
            for i in members:
                y = model.copy()
                for number in range(batches(run.clients[i])):
                    y -= LR * DECAY**round * slope(y, run.clients[i], number)
                moved[i] = y - model
            groups = [members]
            norms = [np.linalg.norm(moved[i]) for i in members]
            if len(members) > 1 and np.linalg.norm(_mean(moved, members)) < eps1 and max(norms) > eps2:
                halves = [[list(part), [i for i in members if i not in part]]
                          for size in range(1, len(members)) for part in combinations(members, size)]  # fmt: skip
                cosines = [max(float(moved[i] @ moved[j] / np.linalg.norm(moved[i]) / np.linalg.norm(moved[j]))
                               for i in one for j in two) for one, two in halves]  # fmt: skip
                groups = sorted(halves[int(np.argmin(cosines))])
            after += [(group, model + 0.8 * _mean(moved, group)) for group in groups]
        clusters = after
        yield clusters


def _mean(moved: dict[int, np.ndarray], members: list[int]) -> np.ndarray:
    total = sum(SIZES[i] for i in members)
    return sum((SIZES[i] / total * moved[i] for i in members), np.zeros(18))


def test_cfl_agrees_with_numpy() -> None:
    eps1, eps2 = 0.2, 0.2
    run = Federation(CFL(eps1=eps1, eps2=eps2, **averaging(8, lr=0.8)))
    numbers = []
    for state, clusters in zip(run.states(), cfl(run, eps1, eps2), strict=True):
        numbers.append(len(clusters))
        assert len(_models(state)) == len(clusters)
        for members, model in clusters:
            for client in members:
                close(personal_of(run.worker, state, client).numpy(), model)
    assert numbers[0] == 1
    assert numbers[-1] > 1


def test_cfl_divides_at_the_fixed_point_of_fedavg_and_each_half_reaches_its_own() -> None:
    """With equal curvatures FedAvg's fixed point is the mean of the b, 0.3; 1 and 5 lie on one side."""
    options = {**averaging(60), "sampler": AllClients()}
    worker, state = on_quadratics(CFL(eps1=1e-3, eps2=1.5, **options), epochs=3, samples=(np.full(3, 4.0), B))
    shared = (N[1:] * B[1:]).sum() / N[1:].sum()
    own = [float(personal_of(worker, state, client)) for client in range(3)]
    close(own, [B[0], shared, shared], rtol=0, atol=1e-8)


def test_clusters_are_divided_only_where_all_took_part() -> None:
    strategy = CFL(eps1=100.0, eps2=0.0, **{**averaging(3), "sampler": UniformSampler(num=2)})
    assert len(_models(fit(make_worker(strategy))[0])) == 1
    parted = fit(make_worker(CFL(eps1=100.0, eps2=0.0, **averaging(1))))[0]
    assert parted.variables["assigned"].unique().tolist() == [0, 1]
    later = CFL(eps1=100.0, eps2=0.0, **{**averaging(4), "sampler": UniformSampler(num=1)})
    state, history = fit(make_worker(later), state=parted)
    assert torch.equal(state.variables["assigned"], parted.variables["assigned"])
    assert len(history) == 3
    one_at_a_time = states(make_worker(later))
    assert all("clusters" not in each.variables for each in one_at_a_time)


def test_cfl_sends_each_client_its_model() -> None:
    state, history = fit(make_worker(CFL(eps1=100.0, eps2=0.0, **averaging(3))))
    assert state.variables["clusters"].shape == (2, 18)
    for record in history:
        assert record.metrics["comm/down_bytes"] == record.metrics["comm/up_bytes"] == 3 * 18 * 4


# Both.

SEVERAL = {"ifca": partial(IFCA, clusters=2), "cfl": partial(CFL, eps1=100.0, eps2=0.0)}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_resumed_run_ends_in_the_same_bits(name: str, tmp_path: Any) -> None:
    options = {"sampler": AllClients(), "server_optimizer": ADAM}
    whole, history = fit(make_worker(SEVERAL[name](rounds=4, **options)))
    half, _ = fit(make_worker(SEVERAL[name](rounds=2, **options)))
    kept = load_checkpoint(save_checkpoint(tmp_path, half, {}), {})
    resumed, _ = fit(make_worker(SEVERAL[name](rounds=4, **options)), state=kept, history=history[:2])
    assert len(_models(whole)) > 1
    for one, two in zip(_models(resumed), _models(whole), strict=True):
        assert torch.equal(one, two)
    assert {k: v.tolist() for k, v in resumed.optimizer.items()} == {k: v.tolist() for k, v in whole.optimizer.items()}
    assert any(key.startswith("cluster/1/") for key in whole.optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
@pytest.mark.parametrize("name", SEVERAL)
def test_engines_agree(name: str, engine: str) -> None:
    ends = [
        fit(make_worker(SEVERAL[name](**averaging(3)), trainer=ENGINES[each](batch_size=8)))[0]
        for each in ("eager", engine)
    ]
    for one, two in zip(*map(_models, ends), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-6 if engine == "vectorized" else 0)


def test_the_mean_beside_every_update_is_the_exact_one() -> None:
    ends = [
        fit(make_worker(FedAvg(**averaging(3, aggregator=rule)), module=_fast()))[0] for rule in (EveryUpdate(), Mean())
    ]
    assert digest(ends[0].vector) == digest(ends[1].vector)


def refusals() -> list[Any]:
    transforms = {"clip_norm": ClipNorm(max_norm=1.0)}
    noise = {"gaussian_noise": GaussianNoise(std=1.0)}
    few = {**averaging(1), "sampler": UniformSampler(num=2)}
    return [
        (
            lambda: IFCA(**averaging(1, aggregator=Median())),
            r"strategy\.aggregator=Median: IFCA's clusters need the mean",
        ),
        (lambda: IFCA(**averaging(1, transforms=transforms)), r"strategy\.transforms=\['clip_norm'\]: must be none"),
        (lambda: IFCA(clusters=0, **averaging(1)), r"strategy\.clusters=0: must be at least 1"),
        (lambda: CFL(**averaging(1, aggregator=Mean())), r"strategy\.aggregator=Mean: CFL needs"),
        (
            lambda: CFL(**averaging(1, transforms=noise)),
            r"strategy\.transforms=\['gaussian_noise'\]: must be none on",
        ),
        (lambda: CFL(**few), r"strategy\.sampler: 2 of 3 clients take part"),
        (lambda: CFL(eps1=-1, **averaging(1)), r"strategy\.eps1=-1: must be at least 0"),
    ]


@pytest.mark.parametrize(("make", "message"), refusals())
def test_what_does_not_fit_is_refused(make: Callable[[], Any], message: str) -> None:
    def checked() -> None:
        strategy = make()
        strategy.check(setup_of(strategy=strategy))

    with pytest.raises(ValueError, match=message):
        checked()
