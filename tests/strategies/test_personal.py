"""Personal parameters: neither sent nor counted, kept by their client, used when it is evaluated."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.data import FederatedData, Splits
from flrl.evaluate import main as evaluate
from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.process_setup import prepare
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer
from flrl.trainers.problem import PERSONAL
from flrl.types import ServerState
from flrl.worker import Worker
from tests.strategies.test_problems import ENGINES, same
from tests.toys import Linear, blobs, blocks, fit, make_worker

FEATURES, CLASSES = 5, 3


def fedavg(personal: list[str], rounds: int = 3) -> FedAvg:
    sgd = partial(torch.optim.SGD, lr=1.0)
    return FedAvg(rounds=rounds, sampler=AllClients(), server_optimizer=sgd, personal=personal)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_client_with_a_part_of_its_own_trains_as_one_without(engine: str) -> None:
    """The global weights and its own bias, round by round, are the parameters that it would have if all were sent."""
    trainer = partial(ENGINES[engine], batch_size=8)
    own, _ = fit(make_worker(fedavg(["net.bias"]), trainer=trainer(), sizes=(30,)))
    whole, _ = fit(make_worker(fedavg([]), trainer=trainer(), sizes=(30,)))
    assert own.vector.shape == (FEATURES * CLASSES,)
    joined = torch.cat([own.vector, own.memory[0][PERSONAL]])
    assert digest(joined) == digest(whole.vector)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_client_keeps_its_own_and_sends_the_rest(engine: str) -> None:
    trainer = partial(ENGINES[engine], batch_size=8)
    state, history = fit(make_worker(fedavg(["*bias"]), trainer=trainer()))
    parts = [state.memory[client_id][PERSONAL] for client_id in range(3)]
    assert [part.shape for part in parts] == [(CLASSES,)] * 3
    assert len({digest(part) for part in parts}) == 3
    for record in history:  # three clients, 15 numbers of 4 bytes each way
        assert record.metrics["comm/up_bytes"] == record.metrics["comm/down_bytes"] == 3 * 15 * 4
    expected, _ = fit(make_worker(fedavg(["*bias"]), trainer=EagerTrainer(batch_size=8)))
    same(engine, state, expected)
    for client_id in range(3):
        close = partial(torch.testing.assert_close, rtol=0, atol=2e-6 if engine == "vectorized" else 0)
        close(state.memory[client_id][PERSONAL], expected.memory[client_id][PERSONAL])


def test_a_client_is_evaluated_with_its_own_part() -> None:
    """Zero weights, and a bias for one class: a client's accuracy is that class's share of its held-out samples."""
    strategy = fedavg(["net.bias"])
    data = FederatedData(Splits(blobs(90), blobs(60, seed=8)), blocks((45, 45)), seed=0, holdout=0.4)
    model = prepare(Linear(), threads=1, device="cpu", personal=strategy.personal)
    worker = Worker(model, data, EagerTrainer(), strategy, Evaluator(batch_size=50, clients_every=1), seed=0)
    state = ServerState(1, torch.zeros(FEATURES * CLASSES))
    classes = {0: 2, 1: 0}
    biases = {client: {PERSONAL: 5 * torch.eye(CLASSES)[label]} for client, label in classes.items()}
    state = ServerState(1, state.vector, memory=state.memory.updated(biases))
    share = worker.examiner.due(1, 1)
    assert share is not None
    rows = worker.examiner.evaluate_share(state.vector, 1, share, worker.examiner.memory(state, share)).clients
    targets = data.splits.train.targets  # type: ignore[attr-defined]
    for client, label in classes.items():
        held = targets[torch.from_numpy(data.holdout_indices(client))]
        assert rows[client]["personal"]["test/accuracy"] == pytest.approx(float((held == label).float().mean()))
    assert rows[0] != rows[1]


def test_a_pattern_names_something() -> None:
    with pytest.raises(ValueError, match=r"strategy.personal=\['head.\*'\]: 'head.\*' names nothing of the model"):
        make_worker(fedavg(["head.*"]))


def test_a_finished_run_is_evaluated_with_what_its_clients_keep(cli: Any) -> None:
    run = ("strategy.personal=['*bias']", "strategy.rounds=2", "partition=dirichlet", "partition.alpha=0.2", "seed=1")
    common = ("holdout=0.3", "logger=none", "hydra.run.dir=run", "evaluation.clients_every=1", "model.optimizer.lr=1")
    assert cli(*run, *common).code == 0
    trained = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    done = cli("run=run", "clients=true", main=evaluate)
    assert done.code == 0, done.err
    assert trained["clients/personal/accuracy_mean"] > trained["test/accuracy"] + 0.05
    found = json.loads(Path("run/evaluation.json").read_text())["clients"]
    assert found == {name: trained[name] for name in found}
    assert len(found) > 3
