"""FedALA, FedAMP and FedRoD: clients with models or heads of their own, against NumPy and at their limits."""

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flrl.aggregation import Mean
from flrl.data import TensorSource
from flrl.layout import ParameterLayout, digest
from flrl.models.nets import mlp_2nn
from flrl.models.two_heads import TwoHeads
from flrl.seeding import generator_for
from flrl.strategies import FedALA, FedAMP, FedAvg, FedRoD
from flrl.strategies.fedala import _first
from flrl.trainers.problem import PERSONAL
from flrl.transforms.gaussian_noise import GaussianNoise
from flrl.types import Aggregate
from tests.strategies.personal import BATCH, DECAY, LR, NEVER, SIZES, Federation, averaging, batches, shares, slope
from tests.strategies.personal import personal as personal_of
from tests.strategies.test_clustered import loss, rotated
from tests.strategies.test_problems import ENGINES
from tests.strategies.test_scaffold import Double, gradient, seeded, states
from tests.toys import Linear, blobs, fit, make_worker, setup_of

close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
cohorts = pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])

# FedALA.


def fedala(run: Federation, eta: float, most: int, threshold: float) -> Any:
    """Algorithm 1 for one layer: the global model, the clients' own and their weights, after every round."""
    w, own, weights = run.start, {}, {}
    for round, cohort in enumerate(run.cohorts):
        ends = []
        for i in cohort:
            y, client = w.copy(), run.clients[i]
            if i in own:
                draw = generator_for(0, round + 1, i, "fedala")
                size = len(client[1])
                rows = np.sort(draw.choice(size, ceil(0.6 * size), replace=False))
                some = (client[0][rows], client[1][rows])
                steps, losses, a = (1 if i in weights else most), [], weights.get(i, np.ones(18))
                while len(losses) < steps:
                    y = own[i] + (w - own[i]) * a
                    losses.append(loss(y, some))
                    a = np.clip(a - eta * gradient(y, *some) * (w - own[i]), 0, 1)
                    if len(losses) > 10 and np.std(losses[-10:]) < threshold:
                        break
                weights[i], y = a, own[i] + (w - own[i]) * a
            for number in range(batches(client)):
                y = y - LR * DECAY**round * slope(y, client, number)
            own[i] = y
            ends.append(y)
        w = w + 0.8 * (shares(cohort) @ (np.stack(ends) - w))
        yield w, dict(own), dict(weights)


@cohorts
@pytest.mark.parametrize(("most", "threshold"), [(4, 0.1), (40, 1e-3)])
def test_fedala_agrees_with_numpy(num: int | None, most: int, threshold: float) -> None:
    strategy = FedALA(eta=20.0, share=0.6, most_steps=most, threshold=threshold, **averaging(4, num, lr=0.8))
    run = Federation(strategy, source=rotated(SIZES, {1}))
    for state, (w, own, weights) in zip(run.states(), fedala(run, 20.0, most, threshold), strict=True):
        close(state.vector.numpy(), w)
        for i, y in own.items():
            close(personal_of(run.worker, state, i).numpy(), y)
            assert ("weights" in state.memory[i]) == (i in weights)
            if i in weights:
                close(state.memory[i]["weights"].numpy(), weights[i])
    assert any(0 < value < 1 for a in weights.values() for value in a)


@cohorts
def test_fedala_with_weights_that_stay_is_fedavg_bit_for_bit(num: int | None) -> None:
    ends = [fit(make_worker(make(**averaging(4, num))))[0] for make in (partial(FedALA, eta=0.0), FedAvg)]
    assert digest(ends[0].vector) == digest(ends[1].vector)


class Deep(Linear):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def test_fedala_leaves_the_lower_layers_to_the_global_model() -> None:
    layout = ParameterLayout(Deep())
    assert [_first(layout, layers) for layers in (1, 2, 3)] == [24, 0, 0]
    state = fit(make_worker(FedALA(layers=1, **averaging(2)), module=seeded(Deep)))[0]
    assert state.memory[0]["weights"].shape == (15,)
    whole = fit(make_worker(FedALA(layers=2, **averaging(2)), module=seeded(Deep)))[0]
    assert whole.memory[0]["weights"].shape == (39,)


# FedAMP.


def fedamp(run: Federation, alpha: float, sigma: float, lam: float) -> Any:
    """Algorithm 1 with steps of gradient descent from the cloud model: the average and the clients' models."""
    w, own = run.start, {}
    for round, cohort in enumerate(run.cohorts):
        after = {}
        for i in cohort:
            u = w
            if i in own:
                others = [j for j in own if j != i]
                m = np.array([alpha / sigma * np.exp(-((own[i] - own[j]) ** 2).sum() / sigma) for j in others])
                m = m / max(1.0, m.sum())
                u = (1 - m.sum()) * own[i] + sum((mj * own[j] for mj, j in zip(m, others, strict=True)), 0 * w)
            y = u.copy()
            for number in range(batches(run.clients[i])):
                y = y - LR * DECAY**round * (slope(y, run.clients[i], number) + lam / alpha * (y - u))
            after[i] = y
        own |= after
        w = w + 0.8 * (shares(cohort) @ (np.stack([after[i] for i in cohort]) - w))
        yield w, dict(own)


@cohorts
@pytest.mark.parametrize(("alpha", "sigma"), [(0.1, 0.5), (2.0, 1.0)], ids=["weak", "scaled"])
def test_fedamp_agrees_with_numpy(num: int | None, alpha: float, sigma: float) -> None:
    strategy = FedAMP(alpha=alpha, sigma=sigma, lam=0.3, **averaging(4, num, lr=0.8))
    run = Federation(strategy, source=rotated(SIZES, {1}))
    for state, (w, own) in zip(run.states(), fedamp(run, alpha, sigma, 0.3), strict=True):
        close(state.vector.numpy(), w)
        assert set(state.memory) == set(own)
        for i, y in own.items():
            close(personal_of(run.worker, state, i).numpy(), y)
            close(state.variables[f"model/{i}"].numpy(), y)


@pytest.mark.parametrize("engine", ["eager", pytest.param("traced", marks=pytest.mark.slow)])
def test_fedamp_without_messages_is_local_training_bit_for_bit(engine: str) -> None:
    """Messages fade to 0 at once, and nothing holds a client: it goes on with its own model."""
    trainer = ENGINES[engine](batch_size=BATCH)
    state = fit(make_worker(FedAMP(sigma=1e-9, lam=0.0, **averaging(3)), sizes=SIZES, trainer=trainer))[0]
    for client in range(3):
        alone = make_worker(FedAvg(**averaging(3)), sizes=SIZES, trainer=trainer)
        only = alone.data.train_indices(client)
        object.__setattr__(alone, "data", _Only(alone.data, only))
        assert torch.equal(state.memory[client]["own"], fit(alone)[0].vector)


class _Only:
    """One client's samples."""

    def __init__(self, data: Any, indices: Any) -> None:
        self._data, self._indices = data, indices
        self.sizes = np.array([len(indices)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def train_indices(self, client_id: int, round: int = 0) -> Any:
        return self._indices


def test_like_clients_hear_each_other_by_hand() -> None:
    """Distances 1 and 100 at sigma 1: messages alpha exp(-1), and none."""
    strategy = FedAMP(alpha=0.5, sigma=1.0, **averaging(1))
    models = {0: torch.zeros(18), 1: torch.eye(18)[0], 2: 10 * torch.eye(18)[1]}
    cloud = strategy.cloud(models, 0, ParameterLayout(Linear()))["cloud"]
    torch.testing.assert_close(cloud, 0.5 * np.exp(-1.0) * torch.eye(18)[0])


def test_fedamp_sends_one_model_each_way_and_never_the_clouds_memory() -> None:
    state, history = fit(make_worker(FedAMP(**averaging(3))))
    for record in history:
        assert record.metrics["comm/down_bytes"] == record.metrics["comm/up_bytes"] == 3 * 18 * 4
    assert {name for memory in state.memory.values() for name in memory} == {"own"}
    nobody = Aggregate({"update": torch.zeros(18).double()}, 0.0, ())
    after = make_worker(FedAMP(**averaging(1))).strategy.aggregate(state, nobody, ParameterLayout(Linear()))
    assert after.variables.keys() == state.variables.keys()


# FedRoD.


class Heads(Double):
    """Softmax regression with two heads, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TwoHeads(net=nn.Sequential(nn.Linear(5, 3)))  # type: ignore[assignment]
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0].double()), batch[1])


def balanced(w: np.ndarray, p: np.ndarray, client: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The two heads' gradients on a batch: each a softmax regression with an offset of its scores."""
    first = number % batches(client, 1) * BATCH
    inputs, labels = client[0][first : first + BATCH], client[1][first : first + BATCH]
    with np.errstate(divide="ignore"):
        prior = np.log(np.bincount(client[1], minlength=3))
    generic = inputs @ w[:15].reshape(3, 5).T + w[15:]
    both = generic + inputs @ p[:15].reshape(3, 5).T + p[15:]
    found = []
    for scores in (generic + prior, both):
        parts = np.exp(scores - scores.max(1, keepdims=True))
        errors = (parts / parts.sum(1, keepdims=True) - np.eye(3)[labels]) / len(labels)
        found.append(np.concatenate([(errors.T @ inputs).reshape(-1), errors.sum(0)]))
    return found[0], found[1]


def fedrod(run: Federation) -> Any:
    w, heads = run.start, {}
    for round, cohort in enumerate(run.cohorts):
        ends = []
        for i in cohort:
            y, p, client = w.copy(), heads.get(i, np.zeros(18)), run.clients[i]
            for number in range(batches(client)):
                g, q = balanced(y, p, client, number)
                y, p = y - LR * DECAY**round * g, p - LR * DECAY**round * q
            heads[i] = p
            ends.append(y)
        w = w + 0.8 * (shares(cohort) @ (np.stack(ends) - w))
        yield w, dict(heads)


def skewed() -> TensorSource:
    """Clients with other shares of the classes; the second has none of class 0."""
    source = blobs(90)
    order = np.argsort((source.labels - np.arange(90) // 30) % 3 + 2 * (np.arange(90) % 3 == 0), kind="stable")
    return TensorSource(source.inputs[order], source.targets[order])


@cohorts
def test_fedrod_agrees_with_numpy(num: int | None) -> None:
    strategy = FedRoD(**averaging(4, num, lr=0.8))
    run = Federation(strategy, source=skewed(), module=Heads)
    for state, (w, heads) in zip(run.states(), fedrod(run), strict=True):
        close(state.vector.numpy(), w)
        assert set(state.memory) == set(heads)
        for i, p in heads.items():
            close(state.memory[i][PERSONAL].numpy(), p)
    counts = [np.bincount(client[1], minlength=3) for client in run.clients]
    assert len({tuple(each / each.sum()) for each in counts}) == 3


def test_fedrod_on_balanced_clients_has_the_global_model_of_fedavg() -> None:
    """Equal numbers of all classes move all scores alike."""
    order = np.concatenate([np.arange(start, 90, 3)[:30] for start in range(3)])
    source = blobs(90)
    even = TensorSource(source.inputs[np.sort(order)], source.targets[np.sort(order)])
    sizes = (30, 30, 30)
    heads, one = (
        states(make_worker(strategy, module=seeded(make), sizes=sizes, source=even, evaluator=NEVER))[-1]
        for strategy, make in ((FedRoD(**averaging(3)), Heads), (FedAvg(**averaging(3)), _Small))
    )
    torch.testing.assert_close(heads.vector, one.vector, rtol=1e-12, atol=1e-13)


class _Small(Double):
    """Softmax regression that begins as the generic head of `Heads`: its layer is drawn at the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 3)).double()  # type: ignore[assignment]


def test_the_global_model_of_fedrod_is_the_generic_head() -> None:
    torch.manual_seed(0)
    net = TwoHeads(net=mlp_2nn(input_shape=[5], num_classes=3, hidden=4))
    inputs = torch.randn(6, 5)
    assert torch.equal(net(inputs), net.generic(net.body(inputs)))
    assert [name for name, _ in net.named_parameters() if name.startswith("personal")] == [
        "personal.weight", "personal.bias",
    ]  # fmt: skip
    nn.functional.cross_entropy(net.personal(net.body(inputs).detach()), torch.zeros(6, dtype=torch.int64)).backward()
    assert all(p.grad is None for name, p in net.named_parameters() if not name.startswith("personal"))


def test_only_the_generic_part_is_sent() -> None:
    _, history = fit(make_worker(FedRoD(**averaging(2)), module=Heads(), evaluator=NEVER))
    for record in history:
        assert record.metrics["comm/up_bytes"] == record.metrics["comm/down_bytes"] == 3 * 18 * 8


# All.

MAKE = {"fedala": FedALA, "fedamp": partial(FedAMP, lam=0.01), "fedrod": FedRoD}


class TwoHeaded(Linear):
    """With two heads, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TwoHeads(net=nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


@pytest.mark.slow
@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "eager"])
@pytest.mark.parametrize("name", MAKE)
def test_engines_agree(name: str, engine: str) -> None:
    ends = [
        fit(make_worker(MAKE[name](**averaging(3)), module=seeded(TwoHeaded), trainer=ENGINES[each](batch_size=8)))[0]
        for each in ("eager", engine)
    ]
    tolerance = 2e-6 if engine == "vectorized" else 0
    torch.testing.assert_close(ends[1].vector, ends[0].vector, rtol=0, atol=tolerance)
    for client, memory in ends[0].memory.items():
        for key, tensor in memory.items():
            torch.testing.assert_close(ends[1].memory[client][key], tensor, rtol=0, atol=50 * tolerance)


def refusals() -> list[Any]:
    noise = {"gaussian_noise": GaussianNoise(std=1.0)}
    return [
        (lambda: FedALA(**averaging(1, personal=["net.bias"])), r"strategy\.personal=\['net\.bias'\]: must be \[\]"),
        (lambda: FedAMP(**averaging(1, personal=["net.bias"])), r"strategy\.personal=\['net\.bias'\]: must be \[\]"),
        (lambda: FedAMP(**averaging(1, aggregator=Mean())), r"strategy\.aggregator=Mean: FedAMP needs"),
        (lambda: FedAMP(**averaging(1, transforms=noise)), r"strategy\.transforms=\['gaussian_noise'\]: must be none"),
        (lambda: FedALA(layers=0, **averaging(1)), r"strategy\.layers=0: must be at least 1"),
        (lambda: FedALA(share=0, **averaging(1)), r"strategy\.share=0: must be in \(0, 1\]"),
        (lambda: FedALA(eta=-1, **averaging(1)), r"strategy\.eta=-1: must be at least 0"),
        (lambda: FedAMP(alpha=0, **averaging(1)), r"strategy\.alpha=0: must be positive"),
        (lambda: FedAMP(lam=-1, **averaging(1)), r"strategy\.lam=-1: must be at least 0"),
        (lambda: FedRoD(**averaging(1)), r"the model has no layer 'net\.generic'"),
        (lambda: FedRoD(generic="net", head="net", **averaging(1, personal=[])), r"must name the personal head"),
        (lambda: FedRoD(generic="", head="net", **averaging(1)), r"strategy\.generic=: must be a torch\.nn\.Linear"),
    ]


@pytest.mark.parametrize(("make", "message"), refusals())
def test_what_does_not_fit_is_refused(make: Callable[[], Any], message: str) -> None:
    def checked() -> None:
        strategy = make()
        personal = strategy.personal if strategy.personal != ("net.personal.*",) else ()
        strategy.personal = personal  # the toy has no such layer
        strategy.check(setup_of(strategy=strategy))

    with pytest.raises(ValueError, match=message):
        checked()
