"""FedBN, FedPer, FedRep, LG-FedAvg, FedBABU, Ditto and the baselines: NumPy, closed forms, identities, what is sent."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flrl.data import FederatedData
from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.process_setup import prepare
from flrl.sampling import AllClients
from flrl.seeding import EVERYBODY, generator_for
from flrl.strategies import Centralized, Ditto, FedAvg, FedBABU, FedRep, LocalOnly
from flrl.trainers import EagerTrainer, TracedTrainer
from flrl.trainers.problem import PERSONAL
from flrl.transforms.clip_norm import ClipNorm
from tests.strategies.test_scaffold import SIZES, Double, averaging, gradient, seeded
from tests.toys import Linear, Rich, blocks, fit, make_worker, setup_of

HEAD = {"personal": ["net.bias"]}
WEIGHTS, BIAS = np.arange(18) < 15, np.arange(18) >= 15
Client = tuple[np.ndarray, np.ndarray]


def alone(rounds: int, num: int | None = None, **more: Any) -> dict[str, Any]:
    options = averaging(rounds, num, **more)
    del options["server_optimizer"]
    return options


# Against NumPy: 18 numbers, batches of 8 at a learning rate of 0.1. All references return the model and clients' own.


def descent(
    w: np.ndarray, client: Client, *, mask: Any = 1.0, pull: float = 0.0, near: Any = 0.0, epochs: int = 2
) -> np.ndarray:
    inputs, labels = client
    for _ in range(epochs):
        for start in range(0, len(labels), 8):
            chosen = slice(start, start + 8)
            w = w - 0.1 * mask * (gradient(w, inputs[chosen], labels[chosen]) + pull * (w - near))
    return w


def mean(w: np.ndarray, ends: dict[int, np.ndarray], clients: list[Client]) -> np.ndarray:
    total = sum(len(clients[i][1]) for i in ends)
    return w + sum(len(clients[i][1]) / total * (y - w) for i, y in ends.items())


def ditto(w: np.ndarray, clients: list[Client], cohorts: Any, lam: float = 0.7) -> Any:
    own: dict[int, np.ndarray] = {}
    for cohort in cohorts:
        for i in cohort:
            own[i] = descent(own.get(i, w), clients[i], pull=lam, near=w)
        w = mean(w, {i: descent(w, clients[i]) for i in cohort}, clients)
    return w, own


def headed(w: np.ndarray, clients: list[Client], cohorts: Any, *, first: int = 0, mask: Any = 1.0) -> Any:
    """Each client has a bias of its own: trained `first` epochs alone, then with or without the weights."""
    own: dict[int, np.ndarray] = {}
    for cohort in cohorts:
        ends = {}
        for i in cohort:
            y = np.concatenate([w[:15], own.get(i, w)[15:]])
            own[i] = ends[i] = descent(descent(y, clients[i], mask=BIAS, epochs=first), clients[i], mask=mask)
        w = np.concatenate([mean(w, ends, clients)[:15], w[15:]])
    return w, own


def by_oneself(w: np.ndarray, clients: list[Client], cohorts: Any) -> Any:
    own: dict[int, np.ndarray] = {}
    for cohort in cohorts:
        own |= {i: descent(own.get(i, w), clients[i]) for i in cohort}
    return w, own


CASES: dict[str, tuple[Any, Any]] = {
    "ditto": (partial(Ditto, lam=0.7), ditto),
    "fedper": (partial(FedAvg, **HEAD), headed),
    "fedrep": (partial(FedRep, head_epochs=3, **HEAD), partial(headed, first=3, mask=WEIGHTS)),
    "fedrep, its head as long": (partial(FedRep, **HEAD), partial(headed, first=2, mask=WEIGHTS)),
    "fedbabu": (partial(FedBABU, **HEAD), partial(headed, mask=WEIGHTS)),
    "local": (LocalOnly, by_oneself),
}


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
@pytest.mark.parametrize("name", CASES)
def test_rounds_agree_with_numpy(name: str, num: int | None) -> None:
    make, reference = CASES[name]
    strategy = make(**(alone if name == "local" else averaging)(3, num))
    trainer = EagerTrainer(batch_size=8, local_epochs=2)
    worker = make_worker(strategy, module=seeded(Double), sizes=SIZES, trainer=trainer)
    start, source = worker.model.local.clone().numpy(), worker.data.splits.train
    indices = [worker.data.train_indices(client) for client in range(3)]
    clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
    state, _ = fit(worker)
    cohorts = [strategy.sampler(3, seed=0, round=round).tolist() for round in (1, 2, 3)]
    w, own = reference(start, clients, cohorts)
    close = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    close(state.vector.numpy(), w[: len(state.vector)])
    if name == "fedbabu":
        assert len(state.memory) == 0
        return
    assert set(state.memory) == set(own)
    for client, expected in own.items():
        key = PERSONAL if PERSONAL in state.memory[client] else "own"
        kept = state.memory[client][key].numpy()
        close(kept, expected[-len(kept) :])


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_centralized_agrees_with_numpy(num: int | None) -> None:
    strategy = Centralized(**averaging(3, num))
    trainer = EagerTrainer(batch_size=8, local_epochs=2)
    worker = make_worker(strategy, module=seeded(Double), sizes=SIZES, trainer=trainer, seed=4)
    w, source = worker.model.local.clone().numpy(), worker.data.splits.train
    state, history = fit(worker)
    for round in (1, 2, 3):
        order = generator_for(4, round, EVERYBODY, "centralized").permutation(worker.data.train_indices(EVERYBODY))
        place = 0
        for client in strategy.sampler(3, seed=4, round=round):
            part = order[place : place + SIZES[client]]
            place += SIZES[client]
            w = descent(w, (source.inputs[part].double().numpy(), source.targets[part].numpy()))
    np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-10, atol=1e-12)
    assert [report.client_id for report in history[-1].reports] == [EVERYBODY]


# Identities.


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_the_global_model_of_ditto_and_fedrep_without_a_head_are_fedavg(num: int | None) -> None:
    made = [FedAvg(**averaging(3, num)), Ditto(lam=0.7, **averaging(3, num)), FedRep(**averaging(3, num))]
    found = [digest(fit(make_worker(strategy, module=seeded(Rich), sizes=SIZES))[0].vector) for strategy in made]
    assert found[0] == found[1] == found[2]


def test_ditto_without_a_pull_is_local_training() -> None:
    trainer = EagerTrainer(batch_size=8, shuffle=True)
    zero, local = (
        fit(make_worker(strategy, module=seeded(Rich), sizes=SIZES, trainer=trainer))[0]
        for strategy in (Ditto(lam=0.0, **averaging(4)), LocalOnly(**alone(4)))
    )
    for client in range(3):
        assert torch.equal(zero.memory[client]["own"], local.memory[client]["own"])
    assert not torch.equal(zero.vector, local.vector)


class Points(Linear):
    """The mean of points: the loss is half the mean squared distance."""

    def __init__(self) -> None:
        super().__init__(lr=0.2)
        del self.net
        self.w = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (batch[0] - self.w).square().sum(1).mean() / 2


@pytest.mark.parametrize("lam", [0.0, 0.25, 2.0])
def test_ditto_on_points_is_its_closed_form(lam: float) -> None:
    """w_k = lam / (1 + lam) * mean + 1 / (1 + lam) * the client's own mean."""
    trainer = EagerTrainer(batch_size=50, local_steps=20, shuffle=True)
    options = {"module": Points(), "sizes": SIZES, "trainer": trainer, "evaluator": _Never()}
    worker = make_worker(Ditto(lam=lam, **averaging(12)), **options)
    inputs = worker.data.splits.train.inputs.double()  # type: ignore[attr-defined]
    state, _ = fit(worker)
    means = [inputs[worker.data.train_indices(client)].mean(0) for client in range(3)]
    overall = sum(n * m for n, m in zip(SIZES, means, strict=True)) / sum(SIZES)
    torch.testing.assert_close(state.vector, overall, rtol=0, atol=1e-9)
    for client, own in enumerate(means):
        expected = lam / (1 + lam) * overall + own / (1 + lam)
        torch.testing.assert_close(state.memory[client]["own"], expected, rtol=0, atol=1e-9)


class _Never(Evaluator):
    def due(self, round: int, rounds: int) -> tuple[bool, bool]:
        return False, False


# BatchNorm.


def statistics_of(made: Any, source: Any, indices: Any) -> Tensor:
    """The running means and variances after one batch."""
    with torch.no_grad():
        hidden = made.net[0](source.inputs[torch.from_numpy(indices)])
    return torch.cat([0.1 * hidden.mean(0), 0.9 + 0.1 * hidden.var(0)])


def test_statistics_of_batchnorm_are_the_mean_of_all_clients_by_their_samples() -> None:
    """Not those of the first to upload, nor the initial ones."""
    worker = make_worker(FedAvg(**averaging(1)), module=seeded(Rich), sizes=SIZES, trainer=EagerTrainer(batch_size=50))
    made = seeded(Rich)
    stats = [statistics_of(made, worker.data.splits.train, worker.data.train_indices(client)) for client in range(3)]
    state, _ = fit(worker)
    expected = sum(n * s for n, s in zip(SIZES, stats, strict=True)) / sum(SIZES)
    torch.testing.assert_close(state.vector[-32:], expected, rtol=0, atol=1e-6)
    assert all((state.vector[-32:] - s).abs().max() > 1e-3 for s in stats)


@pytest.mark.parametrize("engine", [EagerTrainer, TracedTrainer])
def test_personal_batchnorm_is_kept_whole_and_neither_sent_nor_counted(engine: Any) -> None:
    strategy = FedAvg(batchnorm="personal", **averaging(1))
    worker = make_worker(strategy, module=seeded(Rich), sizes=SIZES, trainer=engine(batch_size=50))
    layout = worker.model.layout
    assert [entry.name for entry in layout.personal] == [
        f"net.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    ]
    made = seeded(Rich)
    stats = [statistics_of(made, worker.data.splits.train, worker.data.train_indices(client)) for client in range(3)]
    state, history = fit(worker)
    for client in range(3):
        torch.testing.assert_close(state.memory[client][PERSONAL][-32:], stats[client], rtol=0, atol=1e-6)
    assert history[-1].metrics["comm/up_bytes"] == 3 * 4 * (5 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3)
    named = make_worker(FedAvg(personal=["net.1.*"], **averaging(1)), module=seeded(Rich), sizes=SIZES,
                        trainer=engine(batch_size=50))  # fmt: skip
    assert digest(fit(named)[0].vector) == digest(state.vector)


def test_frozen_statistics_stay_and_are_what_layers_normalise_by() -> None:
    def moved() -> Any:
        module = seeded(Rich)
        module.net[1].running_mean.fill_(0.3)
        module.net[1].running_var.fill_(2.0)
        return module

    strategy = FedAvg(batchnorm="frozen", **averaging(2))
    worker = make_worker(strategy, module=moved(), sizes=SIZES)
    before = worker.model.vector.clone()
    state, _ = fit(worker)
    assert torch.equal(state.vector[-32:], before[-32:])
    assert (state.vector[:-32] != before[:-32]).float().mean() > 0.9
    module = moved()
    model = prepare(module, threads=1, device="cpu", batchnorm="frozen")
    model.load(model.local.clone())
    hidden = torch.randn(4, 16)
    expected = (hidden - 0.3) / (2.0 + 1e-5) ** 0.5
    torch.testing.assert_close(model.module.net[1](hidden), expected)  # type: ignore[operator, index]
    assert model.module.net[3].training  # type: ignore[union-attr, index]


@pytest.mark.parametrize("policy", ["personal", "frozen"])
def test_batchnorm_that_is_not_there_is_refused_by_name(policy: Any) -> None:
    strategy = FedAvg(batchnorm=policy, **averaging(1))
    with pytest.raises(ValueError, match=f"^strategy.batchnorm={policy}: Linear has no BatchNorm layer$"):
        strategy.check(setup_of(Linear(), strategy=strategy))


# What is sent, and which model is which.


def test_a_head_that_stays_is_not_sent_and_finetuned_with_the_body() -> None:
    evaluator = Evaluator(clients_every=1, finetune_steps=4)
    worker = make_worker(FedBABU(**averaging(2), **HEAD), sizes=SIZES, evaluator=evaluator)
    data = FederatedData(worker.data.splits, blocks(SIZES), seed=0, holdout=0.3)
    object.__setattr__(worker, "data", data)
    bias = worker.model.local[15:].clone()
    state, history = fit(worker)
    found = history[-1].metrics
    assert found["comm/up_bytes"] == found["comm/down_bytes"] == 3 * 15 * 4
    assert not any(name.startswith("clients/personal") for name in found)
    worker.model.load(torch.cat([state.vector, bias]))
    assert found["test/loss"] == worker.evaluator.central(worker.model, data)["test/loss"]
    assert found["clients/finetuned/loss_mean"] < found["clients/global/loss_mean"]
    strategy = FedBABU(**averaging(1))
    with pytest.raises(ValueError, match=r"^strategy.personal=\[\]: must name the head that FedBABU keeps"):
        strategy.check(setup_of(strategy=strategy))


@pytest.mark.parametrize("make", [partial(Ditto, lam=0.5), LocalOnly])
def test_the_central_test_set_never_sees_a_clients_own_model(make: Any) -> None:
    options = averaging(2) if make is not LocalOnly else alone(2)
    worker = make_worker(make(**options), sizes=SIZES, evaluator=Evaluator(clients_every=1))
    data = FederatedData(worker.data.splits, blocks(SIZES), seed=0, holdout=0.3)
    object.__setattr__(worker, "data", data)
    initial = worker.model.local.clone()
    state, history = fit(worker)
    found = history[-1].metrics

    def losses(vectors: list[Tensor]) -> float:
        rows = []
        for client, vector in enumerate(vectors):
            worker.model.load(vector)
            rows.append(worker.evaluator.client(worker.model, data, client)["test/loss"])
        return float(np.mean(rows))

    assert torch.equal(state.vector, initial) == (make is LocalOnly)
    own = losses([state.memory[client]["own"] for client in range(3)])
    assert found["clients/personal/loss_mean"] == pytest.approx(own, abs=1e-12)
    assert found["clients/global/loss_mean"] == pytest.approx(losses([state.vector] * 3), abs=1e-12)
    worker.model.load(state.vector)
    assert found["test/loss"] == worker.evaluator.central(worker.model, data)["test/loss"]
    assert abs(own - losses([state.vector] * 3)) > 0.01


def test_local_training_sends_nothing() -> None:
    strategy = LocalOnly(**alone(2))
    _, history = fit(make_worker(strategy, sizes=SIZES))
    assert history[-1].metrics["comm/up_bytes"] == history[-1].metrics["comm/down_bytes"] == 0
    clipping = LocalOnly(**alone(1), transforms={"clip_norm": ClipNorm(max_norm=1.0)})
    with pytest.raises(
        ValueError, match=r"^strategy.transforms=\['clip_norm'\]: clients of strategy=local send nothing"
    ):
        clipping.check(setup_of(strategy=clipping))


@pytest.mark.parametrize("trainer", [{"local_epochs": 2}, {"local_steps": 5}, {"local_steps": 5, "shuffle": True}])
def test_centralized_takes_the_cohorts_steps_on_all_training_samples(trainer: dict[str, Any]) -> None:
    def run(make: Any) -> Any:
        worker = make_worker(make(**averaging(3, 2)), trainer=EagerTrainer(batch_size=8, **trainer), sizes=SIZES)
        return fit(worker)[1][-1]

    alone, together = run(Centralized), run(FedAvg)
    assert sum(r.num_steps for r in alone.reports) == sum(r.num_steps for r in together.reports)
    assert alone.metrics["comm/up_bytes"] == alone.metrics["comm/down_bytes"] == 0
    data = FederatedData(make_worker(FedAvg(**averaging(1))).data.splits, blocks((10, 20, 30, 30)), seed=1, holdout=0.3,
                         held_out_clients=1)  # fmt: skip
    training = [data.train_indices(client) for client in range(3)]
    assert np.array_equal(data.train_indices(EVERYBODY), np.concatenate(training))
    assert len(data.train_indices(EVERYBODY)) == data.sizes.sum()


def test_an_empty_cohort_trains_nobody_centrally() -> None:
    class Nobody(AllClients):
        def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
            return np.arange(0)

    strategy = Centralized(**averaging(1) | {"sampler": Nobody(), "min_clients": 1})
    worker = make_worker(strategy)
    before = worker.model.vector.clone()
    assert torch.equal(fit(worker)[0].vector, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Ditto, lam=-1.0, **averaging(1)), "strategy.lam=-1.0: must be at least 0"),
        (partial(Ditto, lam=float("nan"), **averaging(1)), "strategy.lam=nan: must be at least 0"),
        (partial(FedRep, head_epochs=0, **averaging(1)), "strategy.head_epochs=0: must be at least 1"),
        (
            partial(FedAvg, batchnorm="mine", **averaging(1)),
            "strategy.batchnorm='mine': must be 'average', 'personal' or 'frozen'",
        ),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
