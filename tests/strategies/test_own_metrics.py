"""What is evaluated as `clients/personal/...` in a run is the model that each strategy gives its clients."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from flrl.data import FederatedData, Splits
from flrl.evaluation import Evaluator
from flrl.models.two_heads import TwoHeads
from flrl.process_setup import prepare
from flrl.strategies import APFL, CFL, IFCA, FedALA, FedAMP, FedRoD, PerFedAvg, PFedMe, Strategy
from flrl.trainers import EagerTrainer, LocalProblem
from flrl.trainers.problem import PERSONAL
from flrl.types import ClientTask
from flrl.worker import Worker
from tests.strategies.personal import averaging
from tests.strategies.test_clustered import rotated
from tests.toys import Linear, blobs, blocks, fit

MAKE = {
    "apfl": partial(APFL, alpha=0.7, adaptive=True),
    "pfedme": partial(PFedMe, lam=1.0, lr=0.5),
    "ifca": IFCA,
    "cfl": partial(CFL, eps1=100.0, eps2=0.0),
    "fedala": partial(FedALA, eta=10.0),
    "fedamp": FedAMP,
    "fedrod": FedRoD,
}
SIZES = (30, 45, 60)


def run(strategy: Strategy, **evaluation: Any) -> tuple[Worker, Any, Any]:
    """Worker, last state and last metrics; the second client calls classes otherwise."""
    source = rotated(SIZES, {1})
    data = FederatedData(Splits(source, blobs(30, seed=8)), blocks(SIZES), seed=0, holdout=0.4)
    torch.manual_seed(4)
    module: Any = Linear(lr=0.5)
    if isinstance(strategy, FedRoD):
        module.net = TwoHeads(net=nn.Sequential(module.net))
    model = prepare(module, threads=1, device="cpu", personal=strategy.personal)
    evaluator = Evaluator(every=1, clients_every=1, **evaluation)
    worker = Worker(model, data, EagerTrainer(batch_size=8, local_epochs=3), strategy, evaluator, seed=0)
    state, history = fit(worker)
    return worker, state, history[-1].metrics


@torch.no_grad()
def losses(worker: Worker, models: list[torch.Tensor]) -> float:
    """The mean over the clients of the loss of their models on their held-out samples."""
    found, source = [], worker.data.splits.train
    for client, model in enumerate(models):
        worker.model.load(model)
        held = torch.from_numpy(worker.data.holdout_indices(client))
        scores = worker.model.module.net(source.inputs[held])  # type: ignore[attr-defined, operator]
        found.append(float(nn.functional.cross_entropy(scores, source.targets[held])))  # type: ignore[attr-defined]
    return sum(found) / len(found)


@pytest.mark.parametrize("name", MAKE)
def test_personal_metrics_are_those_of_the_clients_models(name: str) -> None:
    worker, state, metrics = run(MAKE[name](**averaging(4)))
    strategy = worker.strategy
    models = []
    for client in range(3):
        memory = {key: t for key, t in state.memory.get(client, {}).items() if key in (*strategy.evaluates, PERSONAL)}
        task = ClientTask(5, client, SIZES[client], 1.0, memory)
        sent = strategy.broadcast(state, 5, 1.0)
        indices = worker.data.train_indices(client)
        own = strategy.personal_model(LocalProblem.of(worker.model, worker.data.splits.train, indices, task, sent, 0))
        assert own is not None
        models.append(own)
    assert metrics["clients/personal/loss_mean"] == pytest.approx(losses(worker, models), rel=1e-5)
    shared = [worker.model.local_vector(state.vector)] * 3
    assert metrics["clients/global/loss_mean"] == pytest.approx(losses(worker, shared), rel=1e-5)
    assert metrics["clients/personal/loss_mean"] < metrics["clients/global/loss_mean"] - 0.02


def test_perfedavg_is_better_after_a_step_than_before_and_has_no_personal_model() -> None:
    _, _, metrics = run(PerFedAvg(beta=0.3, **averaging(6)), finetune_steps=1)
    assert metrics["clients/finetuned/loss_mean"] < metrics["clients/global/loss_mean"] - 0.02
    assert not any(name.startswith("clients/personal/") for name in metrics)
