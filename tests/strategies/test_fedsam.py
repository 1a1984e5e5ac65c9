"""FedSAM and FedASAM against an implementation in NumPy, and FedAvg's bits; what `adjust_loss` gets for it."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flrl.layout import digest
from flrl.strategies import FedAvg, FedSAM
from flrl.trainers import EagerTrainer, TracedTrainer, VectorizedTrainer
from tests.strategies.test_scaffold import Double, Plain, averaging, gradient, seeded, states
from tests.toys import Linear, fit, make_worker

SIZES = (20, 30, 40)


def stepped(w: np.ndarray, inputs: np.ndarray, labels: np.ndarray, adaptive: bool) -> np.ndarray:
    """One step at learning rate 0.1 with rho 0.3 and eta 0.2; the first 15 numbers are a weight, the others a bias."""
    g, scale = gradient(w, inputs, labels), np.ones_like(w)
    if adaptive:
        scale[:15] = np.abs(w[:15]) + 0.2
    return w - 0.1 * gradient(w + 0.3 * scale**2 * g / np.linalg.norm(scale * g), inputs, labels)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_rounds_agree_with_numpy(adaptive: bool, num: int | None) -> None:
    strategy = FedSAM(rho=0.3, adaptive=adaptive, **averaging(3, num))
    worker = make_worker(
        strategy, module=seeded(Double), sizes=SIZES, trainer=EagerTrainer(batch_size=8, local_epochs=2)
    )
    source = worker.data.splits.train
    indices = [worker.data.train_indices(client) for client in range(3)]
    clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
    w = worker.model.vector.clone().numpy()
    for state in states(worker):
        cohort, moved = strategy.sampler(3, seed=0, round=state.round), np.zeros_like(w)
        for i in cohort:
            (inputs, labels), y = clients[i], w
            for start in [*range(0, len(labels), 8)] * 2:
                y = stepped(y, inputs[start : start + 8], labels[start : start + 8], adaptive)
            moved += SIZES[i] / sum(SIZES[k] for k in cohort) * (y - w)
        w = w + moved
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "trainer", [EagerTrainer, TracedTrainer, pytest.param(partial(VectorizedTrainer, width=2), marks=pytest.mark.slow)]
)
def test_without_radius_it_is_fedavg_bit_for_bit(trainer: Any) -> None:
    first, second = (
        fit(make_worker(strategy, module=seeded(Linear), sizes=SIZES, trainer=trainer(batch_size=8)))
        for strategy in (FedSAM(rho=0.0, **averaging(2)), FedAvg(**averaging(2)))
    )
    assert digest(first[0].vector) == digest(second[0].vector)
    assert first[1][-1].metrics["train/loss"] == second[1][-1].metrics["train/loss"]


def test_a_gradient_of_zero_leaves_no_nan() -> None:
    class Flat(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 0

    worker = make_worker(FedSAM(rho=0.3, **averaging(1)), module=seeded(Flat), sizes=SIZES)
    start = worker.model.vector.clone()
    assert torch.equal(fit(worker)[0].vector, start)


def test_buffers_are_those_of_one_forward_pass() -> None:
    """BatchNorm counts a step's batch once: without learning, its statistics are FedAvg's."""

    class Still(Plain):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    first, second = (
        fit(make_worker(strategy, module=seeded(Still), sizes=SIZES))[0].vector
        for strategy in (FedSAM(rho=0.3, **averaging(2)), FedAvg(**averaging(2)))
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["rho", "eta"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=rf"strategy\.{name}=-1\.0: must be at least 0"):
        FedSAM(**{"rho": 0.1, **averaging(1), name: -1.0})
