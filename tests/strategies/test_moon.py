"""MOON against an implementation in NumPy, FedAvg's bits, and what a client remembers."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flrl.layout import digest
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, Moon
from flrl.trainers import EagerTrainer
from tests.strategies.test_scaffold import averaging, seeded, states
from tests.toys import Linear, fit, make_worker, setup_of

SIZES = (20, 30, 40)
SGD = partial(torch.optim.SGD, lr=1.0)


class Deep(Linear):
    """5 - 4 - 3 units with tanh, in float64 unless told otherwise."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(lr=0.3)
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0].to(self.net[0].weight.dtype)), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.training_step(batch, batch_idx))


def features(w: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return np.tanh(inputs @ w[:20].reshape(4, 5).T + w[20:24])


def cosines(z: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosines of rows, and their derivatives with respect to z."""
    lengths = np.linalg.norm(z, axis=1, keepdims=True), np.linalg.norm(other, axis=1, keepdims=True)
    cosine = (z * other).sum(1, keepdims=True) / lengths[0] / lengths[1]
    return cosine, other / lengths[0] / lengths[1] - cosine * z / lengths[0] ** 2


def gradient(w: np.ndarray, inputs: np.ndarray, labels: np.ndarray, near: Any, far: Any, mu: float) -> np.ndarray:
    """That of the mean cross-entropy plus mu times the mean contrastive loss at temperature 0.5; by hand."""
    z, head = features(w, inputs), w[24:36].reshape(3, 4)
    scores = z @ head.T + w[36:]
    shares = np.exp(scores - scores.max(1, keepdims=True))
    errors = (shares / shares.sum(1, keepdims=True) - np.eye(3)[labels]) / len(labels)
    (to_near, slope_near), (to_far, slope_far) = cosines(z, features(near, inputs)), cosines(z, features(far, inputs))
    share = 1 / (1 + np.exp((to_far - to_near) / 0.5))  # of the global model in the softmax
    of_z = errors @ head + mu / len(labels) * (1 - share) / 0.5 * (slope_far - slope_near)
    of_sums = of_z * (1 - z**2)
    return np.concatenate([(of_sums.T @ inputs).ravel(), of_sums.sum(0), (errors.T @ z).ravel(), errors.sum(0)])


def reference(w: np.ndarray, clients: list[Any], cohorts: list[list[int]], mu: float) -> tuple[np.ndarray, Any]:
    """Two local epochs of batches of 8: the model, and the clients' previous ones."""
    weights, previous = np.array([len(labels) for _, labels in clients], float), {}
    for cohort in cohorts:
        moved = np.zeros_like(w)
        for i in cohort:
            (inputs, labels), y, far = clients[i], w.copy(), previous.get(i, w)
            for start in [*range(0, len(labels), 8)] * 2:
                chosen = slice(start, start + 8)
                y = y - 0.3 * gradient(y, inputs[chosen], labels[chosen], w, far, mu)
            previous[i] = y
            moved += weights[i] / weights[cohort].sum() * (y - w)
        w = w + moved
    return w, previous


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_rounds_agree_with_numpy(num: int | None) -> None:
    strategy = Moon(layer="net.1", mu=2.0, **averaging(4, num))
    worker = make_worker(strategy, module=seeded(Deep), trainer=EagerTrainer(batch_size=8, local_epochs=2), sizes=SIZES)
    source = worker.data.splits.train
    indices = [worker.data.train_indices(client) for client in range(3)]
    clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
    cohorts = [strategy.sampler(3, seed=0, round=round).tolist() for round in range(1, 5)]
    start = worker.model.vector.clone().numpy()
    for rounds, state in enumerate(states(worker), start=1):
        w, previous = reference(start, clients, cohorts[:rounds], mu=2.0)
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-10, atol=1e-12)
        assert set(state.memory) == set(previous)
        for client, vector in previous.items():
            np.testing.assert_allclose(state.memory[client]["previous"].numpy(), vector, rtol=1e-10, atol=1e-12)


def test_the_previous_model_is_renewed_whenever_a_client_takes_part() -> None:
    """Not only at the first time, and for those alone who take part: an error that others have made."""
    strategy = Moon(layer="net.1", mu=1.0, **averaging(6, 2))
    before: dict[int, Tensor] = {}
    for state in states(make_worker(strategy, module=seeded(Deep), sizes=SIZES)):
        cohort = strategy.sampler(3, seed=0, round=state.round).tolist()
        kept = {client: memory["previous"] for client, memory in state.memory.items()}
        for client, vector in kept.items():
            assert torch.equal(vector, before.get(client, vector + 1)) == (client not in cohort)
        before = kept
    assert len(before) == 3


def test_without_weight_it_is_fedavg_and_so_is_the_first_round_of_any_weight() -> None:
    """The previous model is the global one then, and the two slopes cancel."""
    digests = {}
    for mu in (None, 0.0, 5.0):
        options: dict[str, Any] = {"rounds": 2, "sampler": AllClients(), "server_optimizer": SGD}
        strategy = FedAvg(**options) if mu is None else Moon(layer="net.1", mu=mu, **options)
        worker = make_worker(strategy, module=seeded(partial(Deep, torch.float32)), sizes=SIZES)
        digests[mu] = [digest(state.vector) for state in states(worker)]
    assert digests[0.0] == digests[None]
    assert digests[5.0][0] == digests[None][0]
    assert digests[5.0][1] != digests[None][1]


def test_the_model_alone_is_sent() -> None:
    worker = make_worker(Moon(layer="net.1", mu=1.0, **averaging(2)), module=seeded(Deep), sizes=SIZES)
    sent = 3 * worker.model.layout.nbytes
    metrics = fit(worker)[1][-1].metrics
    assert (metrics["comm/up_bytes"], metrics["comm/down_bytes"]) == (sent, sent)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mu": -1.0}, r"strategy\.mu=-1\.0: must be at least 0"), ({"temperature": 0.0}, r"strategy\.temperature=0\.0")],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Moon(**{"layer": "net.1", "mu": 1.0, **averaging(1), **options})


def test_a_layer_that_there_is_not_is_named() -> None:
    strategy = Moon(layer="net.9", mu=1.0, **averaging(1))
    with pytest.raises(ValueError, match=r"^strategy\.layer=net\.9: the model has no such layer; it has net, net\.0, "):
        strategy.check(setup_of(Deep(), strategy=strategy))
