"""Strategies that exchange predictions: against NumPy and numbers by hand, their identities, bytes, and refusals."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flrl.adversaries import LabelFlip, SignFlip
from flrl.aggregation import Median
from flrl.callbacks import Callback
from flrl.data import TensorSource
from flrl.data.retargeted import retargeted
from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.models import Classifier, Mentored
from flrl.runs.checkpoint import load_checkpoint, save_checkpoint
from flrl.sampling import AllClients, UniformSampler
from flrl.strategies import DSFL, FedAvg, FedDF, FedDistill, FedGEMS, FedKD, FedMD
from flrl.strategies.dsfl import entropy_reduced
from flrl.strategies.fedgems import certainty
from flrl.strategies.fedmd import noise_free_privacy
from flrl.trainers import EagerTrainer, LocalProblem, VectorizedTrainer
from flrl.trainers.predicting import predictions
from flrl.trainers.problem import PERSONAL
from flrl.transforms import ClipNorm
from flrl.types import Aggregate, Broadcast, ClientTask, ServerState
from tests.toys import Linear, blobs, fit, make_worker, setup_of

SGD = partial(torch.optim.SGD, lr=1.0)
SIZES = (20, 30, 40)
PUBLIC = {"public_samples": 12, "num_classes": 3}


def everybody(rounds: int = 3, num: int | None = None) -> dict[str, Any]:
    return {"rounds": rounds, "sampler": AllClients() if num is None else UniformSampler(num=num)}


class Double(Linear):
    """In float64 and with two local steps of 5 samples in an epoch of 10: numbers can be compared to many digits."""

    def __init__(self, features: int = 5) -> None:
        super().__init__(features=features)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs.double())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        targets = batch[1] if batch[1].dtype == torch.int64 else batch[1].double()
        return nn.functional.cross_entropy(self(batch[0]), targets)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step((batch[0].double(), batch[1]), batch_idx)


class States(Callback):
    """Keeps the state after every round."""

    def __init__(self) -> None:
        self.states: list[ServerState] = []

    def on_round_end(self, state: ServerState, history: Any) -> None:
        self.states.append(state)


def seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make()


def run(strategy: Any, **options: Any) -> tuple[list[ServerState], list[Any], Any]:
    """The states after all rounds, the records, and the worker."""
    worker, watch = make_worker(strategy, **options), States()
    _, history = fit(worker, callbacks=[watch])
    return watch.states, history, worker


# NumPy: softmax regression, W [3, 5] and b [3] in one vector as the layout has them.


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def scores_of(vector: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return inputs @ vector[:15].reshape(3, 5).T + vector[15:]


def steps(vector: np.ndarray, inputs: np.ndarray, targets: np.ndarray, *, epochs: int = 1, size: int = 8) -> np.ndarray:
    """Plain SGD along the gradient of cross-entropy with class probabilities (or multiples of them)."""
    for _ in range(epochs):
        for first in range(0, len(inputs), size):
            x, t = inputs[first : first + size], targets[first : first + size]
            error = (softmax(scores_of(vector, x)) * t.sum(axis=1, keepdims=True) - t) / len(x)
            vector = vector - 0.1 * np.concatenate([(error.T @ x).ravel(), error.sum(axis=0)])
    return vector


def single(values: np.ndarray) -> np.ndarray:
    """As sent: in float32."""
    return values.astype(np.float32).astype(np.float64)


def samples(worker: Any, client: int) -> tuple[np.ndarray, np.ndarray]:
    return _samples(worker.data.splits.train, worker.data.train_indices(client))


def _samples(source: Any, indices: Any = None) -> tuple[np.ndarray, np.ndarray]:
    indices = np.arange(len(source)) if indices is None else indices
    labels = source.targets.numpy()[indices]
    return source.inputs.numpy()[indices].astype(np.float64), np.eye(3)[labels]


def start_of(worker: Any) -> np.ndarray:
    return seeded(Double).net.weight.detach().numpy().ravel(), seeded(Double).net.bias.detach().numpy()


def initial() -> np.ndarray:
    module = seeded(Double)
    return np.concatenate([part.detach().numpy().ravel() for part in module.net.parameters()])


def cohort(worker: Any, round: int) -> list[int]:
    sampler = worker.strategy.sampler
    return [int(client) for client in sampler(len(SIZES), seed=worker.seed, round=round)]


def close(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected).ravel(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("num", [None, 2])
def test_fedmd_is_numpys(num: int | None) -> None:
    """Whole rounds: transfer learning, then digest, revisit, communicate, aggregate; unequal clients, some absent."""
    strategy = FedMD(**PUBLIC, transfer_epochs=2, digest_epochs=2, **everybody(4, num))
    states, _, worker = run(strategy, module=seeded(Double))
    x, classes = _samples(worker.data.splits.public)
    models: dict[int, np.ndarray] = {}
    consensus = None
    for state in states:
        sent = {}
        for client in cohort(worker, state.round):
            own = models.get(client)
            if own is None:
                own = steps(initial(), x, classes, epochs=2)
            if consensus is not None:
                own = steps(own, x, softmax(single(consensus)), epochs=2)
            models[client] = steps(own, *samples(worker, client))
            sent[client] = single(scores_of(models[client], x))
        total = sum(SIZES[client] for client in sent)
        consensus = sum(SIZES[client] / total * scores for client, scores in sent.items())
        close(state.variables["consensus"], consensus)
        for client, model in models.items():
            close(state.memory[client][PERSONAL], model)
    assert worker.model.layout.size == 0


@pytest.mark.parametrize("temperature", [0.1, None])
def test_dsfl_is_numpys(temperature: float | None) -> None:
    strategy = DSFL(**PUBLIC, temperature=temperature, distill_epochs=2, **everybody(4, 2))
    states, _, worker = run(strategy, module=seeded(Double))
    x, _ = _samples(worker.data.splits.public)
    models: dict[int, np.ndarray] = {}
    consensus, server = None, initial()
    for state in states:
        mean, chosen = np.zeros((12, 3)), cohort(worker, state.round)
        for client in chosen:
            own = models.get(client, initial())
            if consensus is not None:
                own = steps(own, x, single(consensus), epochs=2)
            models[client] = steps(own, *samples(worker, client))
            share = SIZES[client] / sum(SIZES[other] for other in chosen)
            mean += share * single(softmax(scores_of(models[client], x)))
        consensus = mean if temperature is None else softmax(mean / temperature)
        server = steps(server, x, single(consensus), epochs=2)
        close(state.variables["consensus"], consensus)
        close(state.vector, server)
        for client, model in models.items():
            close(state.memory[client][PERSONAL], model)


def test_feddf_is_numpys() -> None:
    """With half of the server's step: the scores of averaged linear models are the average of their scores."""
    strategy = FedDF(**PUBLIC, server_epochs=2, server_optimizer=partial(torch.optim.SGD, lr=0.5), **everybody(4, 2))
    states, _, worker = run(strategy, module=seeded(Double))
    x, _ = _samples(worker.data.splits.public)
    server = initial()
    for state in states:
        chosen = cohort(worker, state.round)
        shares = {client: SIZES[client] / sum(SIZES[other] for other in chosen) for client in chosen}
        models = {client: steps(server, *samples(worker, client)) for client in chosen}
        ensemble = sum(shares[client] * single(scores_of(model, x)) for client, model in models.items())
        stepped = server + 0.5 * (sum(shares[client] * model for client, model in models.items()) - server)
        server = steps(stepped, x, single(softmax(ensemble)), epochs=2)
        assert np.abs(server - stepped).max() > 1e-3
        close(state.vector, server)
        assert state.variables == {}


def test_feddistill_is_numpys() -> None:
    """Scores by class over all samples, so that clients without a class do not count for it."""
    strategy = FedDistill(num_classes=3, gamma=0.7, **everybody(4, 2))
    source = blobs(sum(SIZES))
    source.targets[:20] %= 2  # the first client has no sample of class 2
    source.labels = source.targets.numpy()
    states, _, worker = run(strategy, module=seeded(Double), source=source)
    models: dict[int, np.ndarray] = {}
    known, seen = np.zeros((3, 3)), np.zeros(3)
    for state in states:
        sums, counts, before = np.zeros((3, 3)), np.zeros(3), known.copy()
        for client in cohort(worker, state.round):
            x, classes = samples(worker, client)
            targets = classes + 0.7 * classes @ (softmax(single(before)) * seen[:, None])
            models[client] = steps(models.get(client, initial()), x, targets)
            sums += classes.T @ scores_of(models[client], x)
            counts += classes.sum(axis=0)
        known = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], known)
        seen = np.maximum(seen, counts > 0)
        close(state.variables["scores"], known)
        assert state.variables["seen"].tolist() == seen.tolist()
        for client, model in models.items():
            close(state.memory[client][PERSONAL], model)


def test_fedgems_is_numpys() -> None:
    strategy = FedGEMS(**PUBLIC, epsilon=0.6, server_epochs=2, distill_epochs=2, **everybody(5, 2))
    worker, watch = make_worker(strategy, module=seeded(Double)), States()
    begun = strategy.initialize(worker.model.vector.clone(), worker.model.layout)
    wrong = {"known": torch.arange(12.0).double() % 2, "remembered": torch.arange(36.0).double().flip(0) / 9}
    fit(worker, state=replace(begun, variables=wrong), callbacks=[watch])  # as if every second one had been right
    x, classes = _samples(worker.data.splits.public)
    models: dict[int, np.ndarray] = {}
    taught, server = None, initial()
    remembered, known = wrong["remembered"].view(12, 3).numpy(), wrong["known"].numpy() > 0
    used = set()
    for state in watch.states:
        weighted, weights = np.zeros((12, 3)), np.zeros(12)
        for client in cohort(worker, state.round):
            own = models.get(client, initial())
            if taught is not None:
                own = steps(own, x, 0.6 * classes + 0.4 * softmax(taught), epochs=2)
            models[client] = steps(own, *samples(worker, client))
            scores = scores_of(models[client], x)
            entropy = -(softmax(scores) * np.log(softmax(scores))).sum(axis=1)
            right = scores.argmax(axis=1) == classes.argmax(axis=1)
            weight = np.where(right, np.exp(np.minimum(1 / entropy, 10)), 1)
            weighted += SIZES[client] * weight[:, None] * scores
            weights += SIZES[client] * weight
        own = scores_of(server, x)
        correct = own.argmax(axis=1) == classes.argmax(axis=1)
        teacher = np.where(known[:, None], remembered, weighted / weights[:, None])
        targets = np.where(correct[:, None], classes, 0.6 * classes + 0.4 * softmax(teacher))
        used |= {"correct"} if correct.any() else set()
        used |= {"remembered"} if (known & ~correct).any() else set()
        used |= {"fused"} if (~known & ~correct).any() else set()
        remembered, known = np.where(correct[:, None], own, remembered), known | correct
        server = steps(server, x, targets, epochs=2)
        taught = scores_of(server, x)
        close(state.vector, server)
        close(state.variables["scores"], taught)
    assert used == {"correct", "remembered", "fused"}


# Numbers by hand.


def test_entropy_reduction_by_hand() -> None:
    found = entropy_reduced(torch.tensor([[0.6, 0.4], [0.5, 0.5]]), 0.1)
    expected = 1 / (1 + math.exp(-2.0))
    assert found.flatten().tolist() == pytest.approx([expected, 1 - expected, 0.5, 0.5], abs=1e-6)
    state = ServerState(round=0, vector=torch.zeros(0))
    means = {"update": torch.zeros(0).double(), "predictions": torch.tensor([0.6, 0.4]).double()}
    strategy = DSFL(public_samples=1, num_classes=2, temperature=0.2, **everybody())
    after = strategy.aggregate(state, Aggregate(means, 1.0, ()), None)  # type: ignore[arg-type]
    assert after.variables["consensus"].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)], abs=1e-7)


def test_noise_free_privacy_by_hand() -> None:
    assert noise_free_privacy(9, 5, replacement=False) == pytest.approx((math.log(10 / 5), 5 / 9))
    assert noise_free_privacy(9, 2, replacement=True) == pytest.approx((2 * math.log(10 / 9), 1 - (8 / 9) ** 2))
    assert noise_free_privacy(1000, 100, replacement=False) == pytest.approx((math.log(1001 / 901), 0.1))


def test_certainty_by_hand() -> None:
    """Even scores have the entropy ln 2; a wrong class weighs exp(0), a sure one no more than exp(10)."""
    scores = torch.tensor([[0.0, 0.0], [0.0, 0.0], [50.0, 0.0]]).double()
    classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).double()
    expected = [math.exp(1 / math.log(2)), 1.0, math.exp(10)]
    assert certainty(scores, classes).tolist() == pytest.approx(expected, rel=1e-9)


def test_mean_scores_by_class_by_hand() -> None:
    """Means 0.5 * (1, 3) and 0.25 * (2, 2) of sums and counts: a class nobody has keeps what it had."""
    strategy = FedDistill(num_classes=2, **everybody())
    before = {"scores": torch.tensor([9.0, 9.0, 7.0, 5.0]).double(), "seen": torch.tensor([0.0, 1.0]).double()}
    state = ServerState(round=1, vector=torch.zeros(0), variables=before)
    means = {"sums": torch.tensor([0.5, 1.5, 0.0, 0.0]).double(), "counts": torch.tensor([0.25, 0.0]).double()}
    after = strategy.aggregate(state, Aggregate(means, 1.0, ()), None)  # type: ignore[arg-type]
    assert after.variables["scores"].tolist() == [2.0, 6.0, 7.0, 5.0]
    assert after.variables["seen"].tolist() == [1.0, 1.0]


def test_a_class_without_mean_scores_is_learnt_by_itself() -> None:
    """Targets e_0 + 0.5 softmax(ln 3, 0) for a class with scores, e_1 alone for one without."""
    strategy = FedDistill(num_classes=2, gamma=0.5, **everybody())
    sent = {"scores": torch.tensor([math.log(3.0), 0.0, 5.0, 1.0]), "seen": torch.tensor([1.0, 0.0])}
    found = strategy._targets(np.array([1, 0]), sent)
    assert found.flatten().tolist() == pytest.approx([0.0, 1.0, 1 + 0.5 * 0.75, 0.5 * 0.25])


def test_adaptive_mutual_distillation_by_hand() -> None:
    """KL of (1/2, 1/2) and (3/4, 1/4) both ways, over the sum of the task losses; each gradient the student's."""
    mentor = torch.tensor([[0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mentee = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64, requires_grad=True)
    step = type("Step", (), {"outputs": {"mentor": mentor, "mentee": mentee}})()
    task = torch.tensor(2.0, dtype=torch.float64)
    strategy = FedKD(mutual=0.5, server_optimizer=SGD, **everybody())
    found = strategy.adjust_loss(task, step)
    ways = 0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert float(found.detach()) == pytest.approx(2 + 0.5 * sum(ways) / 2)
    found.backward()
    assert mentor.grad is not None
    assert mentee.grad is not None
    assert mentor.grad.tolist()[0] == pytest.approx([0.25 * (0.5 - 0.75), 0.25 * (0.5 - 0.25)])
    assert mentee.grad.tolist()[0] == pytest.approx([0.25 * (0.75 - 0.5), 0.25 * (0.25 - 0.5)])


# Identities, to the bit.


def test_feddf_without_server_epochs_is_fedavg() -> None:
    found, _, _ = run(FedDF(**PUBLIC, server_epochs=0, server_optimizer=SGD, **everybody(3, 2)))
    plain, _, _ = run(FedAvg(server_optimizer=SGD, **everybody(3, 2)))
    assert [digest(state.vector) for state in found] == [digest(state.vector) for state in plain]


def test_feddistill_without_gamma_and_one_client_trains_alone() -> None:
    """Bits of plain training in rounds that go on: of FedAvg with that client alone."""
    states, _, _ = run(FedDistill(num_classes=3, gamma=0, **everybody(3)), sizes=(40,))
    plain, _, _ = run(FedAvg(server_optimizer=SGD, **everybody(3)), sizes=(40,))
    assert [digest(state.memory[0][PERSONAL]) for state in states] == [digest(state.vector) for state in plain]


def test_fedmd_with_all_private_samples_is_fedmd() -> None:
    states = [run(FedMD(**PUBLIC, private_samples=k, **everybody(2)), sizes=(20, 20))[0] for k in (None, 20)]
    kept = [[digest(state.memory[c][PERSONAL]) for c in (0, 1)] for state in (states[0][-1], states[1][-1])]
    assert kept[0] == kept[1]


class Taught(Mentored):
    """A mentor and a mentee of one linear layer each."""

    def __init__(self) -> None:
        nets = {"mentor": nn.Linear(5, 3), "mentee": nn.Linear(5, 3)}
        super().__init__(**nets, num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.1))


class MenteeAlone(Classifier):
    def __init__(self) -> None:
        nn.Linear(5, 3)  # the mentor's random numbers
        super().__init__(net=nn.Linear(5, 3), num_classes=3, optimizer=partial(torch.optim.SGD, lr=0.1))


def test_fedkd_without_distillation_is_fedavg_of_the_mentee() -> None:
    found, history, _ = run(FedKD(mutual=0, server_optimizer=SGD, **everybody(3, 2)), module=seeded(Taught))
    plain, other, _ = run(FedAvg(server_optimizer=SGD, **everybody(3, 2)), module=seeded(MenteeAlone))
    assert [digest(state.vector) for state in found] == [digest(state.vector) for state in plain]
    assert [r.metrics["test/accuracy"] for r in history] == [r.metrics["test/accuracy"] for r in other]
    assert [r.metrics["comm/up_bytes"] for r in history] == [2 * 4 * 18.0] * 3  # the mentee's alone
    evaluator = Evaluator(clients_every=1)
    _, history, _ = run(
        FedKD(server_optimizer=SGD, **everybody(1)), module=seeded(Taught), holdout=0.2, evaluator=evaluator
    )
    assert {
        name.split("/")[1] for name in history[-1].metrics if name.startswith("clients/") and name.count("/") == 2
    } == {"global"}  # the mentee never goes under the personal model's name


def test_fedkd_is_the_gradient_of_both_losses_and_survives_a_checkpoint(tmp_path: Any) -> None:
    make = partial(FedKD, server_optimizer=SGD, sampler=UniformSampler(num=2))
    states, history, _ = run(make(rounds=4), module=seeded(Taught))
    path = save_checkpoint(tmp_path, run(make(rounds=2), module=seeded(Taught))[0][-1], {"a": 1})
    worker = make_worker(make(rounds=4), module=seeded(Taught))
    resumed, _ = fit(worker, state=load_checkpoint(path, {"a": 1}), history=history[:2])
    assert digest(resumed.vector) == digest(states[-1].vector)
    assert all(torch.equal(resumed.memory[c][PERSONAL], m[PERSONAL]) for c, m in states[-1].memory.items())
    alone = run(FedKD(mutual=0, server_optimizer=SGD, **everybody(4, 2)), module=seeded(Taught))[0]
    assert digest(alone[-1].vector) != digest(states[-1].vector)


# Public samples, what is sent, and who is evaluated.


def test_private_samples_are_drawn_once() -> None:
    asked: list[tuple[int, int, list[int]]] = []

    class Noting(EagerTrainer):
        def fit(self, problem: LocalProblem, hooks: Any) -> Any:
            if problem.source is not problem.public and len(problem.indices) != 12:
                asked.append((problem.task.client_id, problem.task.round, problem.indices.tolist()))
            return super().fit(problem, hooks)

    strategy = FedMD(**PUBLIC, private_samples=7, **everybody(3))
    _, history, worker = run(strategy, trainer=Noting(batch_size=8))
    by_client = {c: {tuple(i) for client, _, i in asked if client == c} for c in range(3)}
    assert all(len(sets) == 1 for sets in by_client.values())
    chosen = {c: next(iter(sets)) for c, sets in by_client.items()}
    assert all(len(set(chosen[c])) == 7 and {*chosen[c]} <= {*worker.data.train_indices(c)} for c in range(3))
    spent = [math.log((n + 1) / (n - 6)) for n in SIZES]
    mean = sum(n * e for n, e in zip(SIZES, spent, strict=True)) / 90
    assert history[-1].metrics["privacy/epsilon"] == pytest.approx(mean)
    assert history[-1].metrics["privacy/delta"] == pytest.approx(3 * 7 / 90)


@pytest.mark.parametrize(
    ("strategy", "up", "down"),
    [
        (FedMD(**PUBLIC, **everybody(2)), 12 * 3 * 4, 12 * 3 * 4),
        (DSFL(**PUBLIC, **everybody(2)), 12 * 3 * 4, 12 * 3 * 4),
        (FedGEMS(**PUBLIC, **everybody(2)), 12 * 4 * 4, 12 * 3 * 4),
        (FedDistill(num_classes=3, **everybody(2)), 12 * 4, 12 * 4),
        (FedDF(**PUBLIC, server_optimizer=SGD, **everybody(2)), 12 * 3 * 4 + 18 * 4, 18 * 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedAvg | FedMD | DSFL | FedGEMS | FedDistill) else "",
)
def test_bytes_are_those_of_predictions(strategy: Any, up: int, down: int) -> None:
    _, history, _ = run(strategy)
    first = 3 * 18 * 4.0 if strategy.sends_model else 0.0
    assert [r.metrics["comm/up_bytes"] for r in history] == [3.0 * up] * 2
    assert [r.metrics["comm/down_bytes"] for r in history] == [first, 3.0 * down]


class Wide(Linear):
    """Another network for the same samples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


KINDS = pytest.mark.parametrize("make", [FedMD, DSFL, FedGEMS], ids=lambda make: make.__name__)


@KINDS
def test_clients_of_different_kinds_learn_together(make: Any) -> None:
    strategy = make(**PUBLIC, **everybody(6))
    evaluator = Evaluator(batch_size=50, clients_every=1)
    kinds = [seeded(Linear), seeded(Wide)]
    states, history, worker = run(strategy, module=seeded(Linear), kinds=kinds, holdout=0.2, evaluator=evaluator)
    sizes = [states[-1].memory[client][PERSONAL].numel() for client in range(3)]
    assert sizes == [18, 66, 18]
    metrics = [record.metrics for record in history]
    assert metrics[-1]["clients/personal/loss_mean"] < 0.9 * metrics[0]["clients/personal/loss_mean"]
    central = [name for name in metrics[-1] if name.startswith(("test/", "clients/global/"))]
    assert bool(central) == (make is not FedMD)
    if central:
        assert metrics[-1]["test/loss"] < metrics[0]["test/loss"]
    again, _, _ = run(strategy, module=seeded(Linear), kinds=[seeded(Linear), seeded(Wide)], holdout=0.2)
    assert all(torch.equal(again[-1].memory[c][PERSONAL], states[-1].memory[c][PERSONAL]) for c in range(3))
    model = worker.model_of(1)
    model.load(states[-1].memory[1][PERSONAL])
    own = worker.evaluator.client(model, worker.data, 1, seed=0)["test/loss"]
    part = worker.examiner.client(1, Broadcast(7, states[-1].vector, 0.0), states[-1].memory[1])
    assert part["personal"]["test/loss"] == own


@pytest.mark.parametrize("make", [FedMD, pytest.param(FedGEMS, marks=pytest.mark.slow)])
def test_client_batches_hold_one_kind_and_one_form_of_targets(make: Any) -> None:
    """Clients that join late have public samples before them while others have their own."""
    results = []
    for trainer in (EagerTrainer(batch_size=8), VectorizedTrainer(batch_size=8, width=3)):
        kinds = [seeded(Linear), seeded(Wide)]
        strategy = make(**PUBLIC, **everybody(4, 2))
        states, _, _ = run(strategy, module=seeded(Linear), kinds=kinds, trainer=trainer)
        results.append(states[-1])
    for client in results[0].memory:
        np.testing.assert_allclose(*(state.memory[client][PERSONAL] for state in results), rtol=0, atol=1e-5)


def test_predictions_are_of_the_given_vector_in_evaluation_mode() -> None:
    class Dropping(Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.dropout(self.net(inputs), 0.5, self.training)

    class Own(Linear):
        def predict_step(self, batch: Any) -> Tensor:
            return 2 * self.net(batch[0])

    for module, factor in ((Dropping(), 1), (Own(), 2)):
        worker = make_worker(FedDF(**PUBLIC, server_optimizer=SGD, **everybody()), module=module)
        vector, public = torch.arange(18.0) / 9, worker.data.splits.public
        task = ClientTask(1, 0, 20, 20.0)
        problem = LocalProblem.of(
            worker.model, worker.data.splits.train, np.arange(3), task, Broadcast(1, vector * 0, 1.0), 0, public
        )
        expected = factor * scores_of(vector.double().numpy(), _samples(public)[0])
        np.testing.assert_allclose(predictions(problem, vector), expected, atol=1e-5)
        assert module.training


def test_targets_are_exchanged_and_inputs_shared() -> None:
    source, targets = blobs(10), torch.rand(10, 3)
    other = retargeted(source, targets)
    assert isinstance(other, TensorSource)
    assert other.inputs is source.inputs
    (inputs, found) = next(iter(other.batches(np.array([7, 2]), 5)))
    assert torch.equal(found, targets[[7, 2]])
    assert torch.equal(inputs, source.inputs[[7, 2]])
    with pytest.raises(ValueError, match="10 samples but 9 targets"):
        retargeted(source, targets[:9])


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        ("strategy=fedmd", "model=kinds", "strategy.private_samples=20"),
        ("strategy=dsfl", "model=kinds"),
        ("strategy=dsfl",),
        ("strategy=fedgems", "model=kinds", "model@model.server=mlp_2nn"),
        ("strategy=feddf",),
        ("strategy=feddistill", "model=kinds"),
        ("strategy=fedkd", "model=mentored"),
    ],
    ids=" ".join,
)
def test_runs_have_the_same_bits_on_processes_and_after_a_resume(cli: Any, choice: tuple[str, ...]) -> None:
    """Whole runs of the command line: metrics, digests, and checksums of all that clients send."""
    common = (
        *choice, "public_samples=50", "holdout=0.2", "evaluation=clients", "evaluation.finetune_steps=2",
        "strategy/sampler=uniform", "strategy.sampler.num=4", "log_clients=true", "trainer=eager", "logger=none",
    )  # fmt: skip

    def rows(folder: str, *own: str) -> Any:
        done = cli(*common, f"hydra.run.dir={folder}", *own)
        assert done.code == 0, done.err
        found = []
        for name in ("metrics.jsonl", "clients.jsonl"):
            lines = [json.loads(line) for line in Path(folder, name).read_text().splitlines()]
            found.append(
                [{k: v for k, v in line.items() if "time/" not in k and not k.endswith("_s")} for line in lines]
            )
        return found

    expected = rows("serial", "strategy.rounds=4")
    assert rows("process", "strategy.rounds=4", "backend=process", "backend.workers=2") == expected
    rows("resumed", "strategy.rounds=2", "backend=process", "backend.workers=3")
    assert rows("resumed", "strategy.rounds=4", "resume=auto") == expected
    names = expected[0][-1]
    assert ("test/accuracy" in names) == (choice[0] not in ("strategy=fedmd", "strategy=feddistill"))
    own = ("strategy=fedmd", "strategy=dsfl", "strategy=fedgems", "strategy=feddistill")
    assert ("clients/personal/accuracy_mean" in names) == (choice[0] in own)


def test_networks_of_kinds_need_a_strategy_that_sends_none(cli: Any) -> None:
    done = cli("model=kinds", "logger=none", "hydra.run.dir=run")
    assert done.code == 1
    assert "model.kinds: clients of FedAvg exchange parameters" in done.err


# Refusals.


class Hard(Linear):
    """Its loss takes no probabilities."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.nll_loss(self(batch[0]).log_softmax(dim=1), batch[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"FedMD needs public samples: public_samples=1000"),
        ({"public": blobs(11)}, r"strategy\.public_samples=12: there are 11 public samples"),
        ({"public": blobs(12), "module": Hard()}, r"Hard's training_step must take class probabilities"),
        (
            {"public": blobs(12), "module": Linear(classes=4)},
            r"Linear's forward .*gives \[2, 4\] for 2 samples of 3 cl",
        ),
        ({"public": blobs(12), "strategy": {"private_samples": 21}}, r"private_samples=21: a client has only 20"),
        ({"public": blobs(12), "strategy": {"aggregator": Median()}}, r"strategy\.aggregator=Median: predictions"),
        ({"public": blobs(12), "strategy": {"transforms": {"clip": ClipNorm(max_norm=1.0)}}}, r"transforms\.clip"),
        ({"public": retargeted(blobs(12), torch.rand(12, 3))}, r"needs the classes of the public samples"),
    ],
)
def test_what_cannot_be_distilled_is_refused(change: dict[str, Any], message: str) -> None:
    strategy = FedMD(**PUBLIC, **everybody(), **change.pop("strategy", {}))
    with pytest.raises(ValueError, match=message):
        strategy.check(setup_of(strategy=strategy, **change))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (FedMD, {"public_samples": -1}, r"strategy\.public_samples=-1: must be at least 0"),
        (FedMD, {"digest_epochs": 0}, r"strategy\.digest_epochs=0: must be at least 1"),
        (FedMD, {"private_samples": 0}, r"strategy\.private_samples=0"),
        (DSFL, {"temperature": 0}, r"strategy\.temperature=0: must be positive"),
        (FedGEMS, {"epsilon": 1.5}, r"strategy\.epsilon=1\.5: must be from 0 to 1"),
        (FedDF, {"server_epochs": -1, "server_optimizer": SGD}, r"strategy\.server_epochs=-1"),
        (FedDF, {"num_classes": 0, "server_optimizer": SGD}, r"strategy\.num_classes=0"),
    ],
)
def test_invalid_settings_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**PUBLIC | options, **everybody())


def test_invalid_factors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strategy\.gamma=-1"):
        FedDistill(num_classes=3, gamma=-1, **everybody())
    with pytest.raises(ValueError, match=r"strategy\.mutual=-1"):
        FedKD(mutual=-1, server_optimizer=SGD, **everybody())
    worker = make_worker(FedDistill(num_classes=3, **everybody()), module=Hard())
    with pytest.raises(ValueError, match="Hard's training_step must take class probabilities"):
        worker.rehearse(*worker.strategy.plan(_start(worker), worker.data.sizes, 0, worker.model.layout))


def test_adversaries_that_change_updates_are_refused_where_there_are_none() -> None:
    strategy = FedDistill(num_classes=3, **everybody())
    setup = setup_of(strategy=strategy)
    with pytest.raises(ValueError, match="SignFlip: changes updates of a model, and clients of FedDistill send none"):
        SignFlip(clients=1).check(setup)
    LabelFlip(clients=1, num_classes=3).check(setup)
    SignFlip(clients=1).check(setup_of())


def _start(worker: Any) -> ServerState:
    return worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout)


def test_an_empty_cohort_keeps_what_is_known() -> None:
    nothing = torch.zeros(0).double()
    state = ServerState(3, torch.zeros(0), variables={"consensus": torch.ones(36).double()})
    means = {"update": nothing, "predictions": torch.zeros(36).double(), "certainty": torch.zeros(12).double()}
    for make in (FedMD, DSFL, FedGEMS):
        strategy = make(**PUBLIC, **everybody())
        after = strategy.aggregate(state, Aggregate(means, 0.0, ()), None)
        assert replace(after, round=3).variables == state.variables
