"""q-FedAvg and AFL against implementations in NumPy, by hand, and FedAvg's bits."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.aggregation import Median
from flrl.data import TensorSource
from flrl.errors import ClientError
from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.sampling import UniformSampler
from flrl.strategies import AFL, FedAvg, QFedAvg
from flrl.strategies.afl import projected
from flrl.trainers import EagerTrainer
from flrl.types import Aggregate, ServerState
from tests.strategies.test_scaffold import OPTIMUM, A, B, Double, N, Quadratic, averaging, gradient, seeded, states
from tests.toys import Linear, Notes, Rich, fit, make_worker, setup_of

SIZES = (20, 30, 40)


def loss(w: np.ndarray, inputs: np.ndarray, labels: np.ndarray) -> float:
    scores = inputs @ w[:15].reshape(3, 5).T + w[15:]
    return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[np.arange(len(labels)), labels]))


def trained(w: np.ndarray, client: Any) -> np.ndarray:
    """After two local epochs of batches of 8 at learning rate 0.1."""
    inputs, labels = client
    for start in [*range(0, len(labels), 8)] * 2:
        w = w - 0.1 * gradient(w, inputs[start : start + 8], labels[start : start + 8])
    return w


def federation(strategy: FedAvg, **options: Any) -> tuple[Any, list[Any], np.ndarray]:
    """A worker, what its clients have, and the initial model."""
    trainer = EagerTrainer(batch_size=8, local_epochs=2, **options)
    worker = make_worker(strategy, module=seeded(Double), sizes=SIZES, trainer=trainer)
    source = worker.data.splits.train
    indices = [worker.data.train_indices(client) for client in range(3)]
    clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
    return worker, clients, worker.model.vector.clone().numpy()


# q-FedAvg.


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
@pytest.mark.parametrize("q", [0.5, 2.0])
def test_qfedavg_agrees_with_numpy(q: float, num: int | None) -> None:
    """Algorithm 2 with L = 1 / lr, where each sum over the cohort weighs clients by samples."""
    strategy = QFedAvg(q=q, **averaging(4, num))
    worker, clients, w = federation(strategy)
    for state in states(worker):
        steps, curvatures = np.zeros_like(w), 0.0
        for i in strategy.sampler(3, seed=0, round=state.round):
            before, moved = loss(w, *clients[i]), (w - trained(w, clients[i])) / 0.1
            steps += SIZES[i] * before**q * moved
            curvatures += SIZES[i] * (q * before ** (q - 1) * (moved**2).sum() + before**q / 0.1)
        w = w - steps / curvatures
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("make", [Linear, Rich])
def test_qfedavg_without_q_is_fedavg_bit_for_bit(make: Any) -> None:
    options = {"rounds": 3, "sampler": UniformSampler(num=2), "server_optimizer": partial(torch.optim.SGD, lr=1.0)}
    first, second = (
        fit(make_worker(strategy, module=seeded(make), sizes=SIZES))[0]
        for strategy in (QFedAvg(q=0.0, **options), FedAvg(**options))
    )
    assert digest(first.vector) == digest(second.vector)


@pytest.mark.slow
def test_lipschitz_is_one_over_the_learning_rate_unless_it_is_given() -> None:
    """Over the mean one, where rates decay."""
    found = {}
    for lipschitz, decay in ((None, 1.0), (10.0, 1.0), (None, 0.5), (20.0, 0.5)):
        worker, _, _ = federation(QFedAvg(q=1.0, lipschitz=lipschitz, **averaging(2)), lr_decay=decay)
        found[lipschitz, decay] = states(worker)
    for rounds in (0, 1):
        torch.testing.assert_close(found[None, 1.0][rounds].vector, found[10.0, 1.0][rounds].vector)
    torch.testing.assert_close(found[None, 0.5][0].vector, found[10.0, 1.0][0].vector)
    assert not torch.allclose(found[None, 0.5][1].vector, found[20.0, 0.5][1].vector, atol=1e-4)


def test_qfedavgs_server_by_hand_and_its_bytes() -> None:
    """Update / h where parameters are, the mean where buffers are; and nothing without clients."""
    worker = make_worker(QFedAvg(q=1.0, **averaging(1)), module=seeded(Rich))
    layout, strategy = worker.model.layout, worker.strategy
    state = ServerState(0, torch.zeros(layout.size))
    means = {"update": torch.full((layout.size,), 6.0).double(), "h": torch.tensor([4.0]).double()}
    after = strategy.aggregate(state, Aggregate(means, 9.0, ()), layout).vector
    assert set(after[: layout.num_trainable].tolist()) == {1.5}
    assert set(after[layout.num_trainable :].tolist()) == {6.0}
    empty = {name: torch.zeros_like(mean) for name, mean in means.items()}
    assert torch.equal(strategy.aggregate(state, Aggregate(empty, 0.0, ()), layout).vector, state.vector)
    _, history = fit(worker)
    assert history[-1].metrics["comm/up_bytes"] == 3 * (layout.nbytes + 8)
    assert history[-1].metrics["comm/down_bytes"] == 3 * layout.nbytes


def quadratics(strategy: FedAvg, a: Any = A, b: Any = B, sizes: Any = N, epochs: int = 1) -> float:
    """The model that full-batch steps on the clients' quadratics lead to."""
    samples = torch.from_numpy(np.repeat(np.stack([a, b], axis=1), sizes, axis=0))
    source = TensorSource(samples, torch.zeros(len(samples)))
    trainer, evaluator = EagerTrainer(batch_size=10, local_epochs=epochs), Evaluator(every=999)
    worker = make_worker(
        strategy, module=Quadratic(), sizes=list(sizes), source=source, trainer=trainer, evaluator=evaluator
    )
    return float(fit(worker)[0].vector)


@pytest.mark.parametrize("q", [pytest.param(0.5, marks=pytest.mark.slow), 2.0])
def test_qfedavg_ends_at_the_minimum_of_its_objective(q: float) -> None:
    """There the slopes of `n_k / n F_k^(q+1) / (q+1)` sum to zero."""
    w = quadratics(QFedAvg(q=q, **averaging(120)))
    losses = A / 2 * (w - B) ** 2
    assert float((N * losses**q * A * (w - B)).sum()) == pytest.approx(0, abs=1e-4)
    elsewhere = A / 2 * (OPTIMUM - B) ** 2
    assert (N * losses ** (q + 1)).sum() < (N * elsewhere ** (q + 1)).sum()


def test_negative_losses_are_refused_by_name() -> None:
    class Negative(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) - 100

    with pytest.raises(ClientError, match=r"q-FedAvg needs losses of at least 0, the global model has -9\d"):
        fit(make_worker(QFedAvg(q=1.0, **averaging(1)), module=Negative()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"q": -1.0}, r"strategy\.q=-1\.0: must be at least 0"),
        ({"lipschitz": 0.0}, r"strategy\.lipschitz=0\.0"),
        ({"aggregator": Median()}, r"strategy\.aggregator=Median: q-FedAvg's sums need the mean"),
    ],
)
def test_qfedavgs_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _checked(QFedAvg, **{"q": 1.0, **averaging(1), **options})


# AFL.


def nearest(vector: np.ndarray, least: float) -> np.ndarray:
    """The nearest mixture, by trying all sets of elements that end at the least value."""
    found, n = [], len(vector)
    for bits in range(2**n - 1):
        low = np.array([bits >> i & 1 for i in range(n)], bool)
        mixture = np.full(n, least)
        mixture[~low] = vector[~low] + (1 - least * low.sum() - vector[~low].sum()) / (~low).sum()
        if (mixture >= least).all():
            found.append(mixture)
    return min(found, key=lambda mixture: ((mixture - vector) ** 2).sum())


def test_projections_are_the_nearest_mixtures() -> None:
    assert projected(torch.tensor([0.5, 0.9]).double(), 1.0, 0.0).tolist() == pytest.approx([0.3, 0.7])
    assert projected(torch.tensor([0.0, 3.0, 1.0]).double(), 10.0, 1.0).tolist() == pytest.approx([2, 5, 3])
    assert projected(torch.tensor([0.1, 5.0]).double(), 1.0, 0.1).tolist() == pytest.approx([0.1, 0.9])
    assert projected(torch.tensor([5.0, 0.0]).double(), 1.0, 0.5).tolist() == [0.5, 0.5]
    rng = np.random.default_rng(0)
    for least in (0.0, 0.05, 0.2):
        for vector in rng.normal(scale=0.5, size=(50, 4)):
            np.testing.assert_allclose(projected(torch.from_numpy(vector), 1.0, least), nearest(vector, least))


@pytest.mark.parametrize("rate", [0.05, 20.0])
def test_afl_agrees_with_numpy(rate: float) -> None:
    """The mixture steps up by the losses at the model that was sent, after the model has stepped with the old one."""
    worker, clients, w = federation(AFL(mixture_lr=rate, least=0.03, **averaging(5)))
    mixture, least = np.array(SIZES) / 90, False
    for state in states(worker):
        losses = np.array([loss(w, *client) for client in clients])
        w = sum(share * trained(w, client) for share, client in zip(mixture, clients, strict=True))
        mixture = nearest(mixture + rate * losses, 0.01)
        least = least or mixture.min() == 0.01
        np.testing.assert_allclose(state.variables["mixture"].numpy() / 90, mixture, rtol=1e-10)
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-10, atol=1e-12)
    assert least == (rate == 20.0)


def test_afls_first_round_is_that_of_fedavg_and_so_are_all_without_a_rate() -> None:
    digests = {}
    for rate in (None, 0.0, 0.5):
        strategy = FedAvg(**averaging(2)) if rate is None else AFL(mixture_lr=rate, **averaging(2))
        digests[rate] = [digest(state.vector) for state in states(make_worker(strategy, sizes=(16, 32, 16)))]
    assert digests[0.0] == digests[None]
    assert digests[0.5][0] == digests[None][0]
    assert digests[0.5][1] != digests[None][1]


def test_afl_ends_where_the_worst_loss_is_least() -> None:
    """Of two equal parabolas at -1 and 3 that is half way, however many samples each has; FedAvg ends at 0."""
    where = {"a": np.ones(2), "b": np.array([-1.0, 3.0]), "sizes": (6, 2), "epochs": 6}
    assert quadratics(FedAvg(**averaging(40)), **where) == pytest.approx(0, abs=1e-3)
    assert quadratics(AFL(mixture_lr=0.05, **averaging(60)), **where) == pytest.approx(1, abs=1e-2)


def test_afl_reports_the_loss_and_counts_its_bytes() -> None:
    worker, clients, w = federation(AFL(mixture_lr=0.1, **averaging(1)))
    _, history = fit(worker)
    expected = sum(size / 90 * loss(w, *client) for size, client in zip(SIZES, clients, strict=True))
    assert history[-1].metrics["train/loss_before"] == pytest.approx(expected, rel=1e-6)
    assert history[-1].metrics["comm/up_bytes"] == 3 * (worker.model.layout.nbytes + 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixture_lr": -1.0}, r"strategy\.mixture_lr=-1\.0: must be at least 0"),
        ({"least": 0.0}, r"strategy\.least=0\.0: must be above 0 and at most 1"),
        ({"sampler": UniformSampler(num=2)}, r"strategy\.sampler: AFL needs all clients in every round"),
        ({"aggregator": Median()}, r"strategy\.aggregator=Median: AFL's weights need the mean"),
    ],
)
def test_afls_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _checked(AFL, **{"mixture_lr": 0.1, **averaging(1), **options})


def _checked(make: Any, **options: Any) -> None:
    strategy = make(**options)
    strategy.check(setup_of(strategy=strategy))


def test_the_loss_alone_costs_no_backward_pass() -> None:
    """And its difference is zero."""
    notes = Notes()

    class Watching(FedAvg):
        def local(self, problem: Any) -> Any:
            found = yield replace(problem, only_gradient=True, trainable=frozenset())
            notes.add(found)
            return found.update(problem)

    class NoBackward(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            value = super().training_step(batch, batch_idx)
            value.register_hook(lambda gradient: pytest.fail("a backward pass"))
            return value

    worker = make_worker(Watching(**averaging(1)), module=NoBackward(), sizes=SIZES)
    fit(worker)
    found = notes.all()
    assert float(found[0].difference.abs().max()) == 0.0
    assert found[0].metrics["train/loss"] > 0
