"""Which model is meant on clients' held-out samples: global, personal, finetuned; and clients that never train."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from flrl.data import FederatedData
from flrl.errors import ClientError
from flrl.evaluate import main as evaluate
from flrl.evaluation import Evaluator
from flrl.sampling import AllClients, UniformSampler
from flrl.seeding import SERVER, generator_for
from flrl.strategies import FedAvg, FedProx
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LocalProblem, TracedTrainer, VectorizedTrainer
from flrl.types import Broadcast, ServerState
from flrl.worker import Worker
from tests.backends.inside import started
from tests.backends.test_digest_table import BACKENDS, MPIEXEC, ROOT
from tests.toys import blocks, fit, make_worker

SIZES, SIZE = (20, 30, 40, 10), 18
OPTIONS: dict[str, Any] = {"rounds": 2, "server_optimizer": partial(torch.optim.SGD, lr=1.0)}


class Own(FedAvg):
    """A client's model is what it keeps plus what the server sends; the first round's clients alone have one."""

    evaluates = ("own",)

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        sent = super().broadcast(state, round, total_weight)
        return replace(sent, variables={"shift": torch.tensor([float(round), total_weight])})

    def local(self, problem: LocalProblem) -> Local:
        trained = yield problem
        return trained.update(problem, memory={"own": trained.vector.cpu(), "more": torch.ones(3)})

    def personal_model(self, problem: LocalProblem) -> Tensor | None:
        assert problem.task.memory.keys() <= {"own"}
        own = problem.task.memory.get("own")
        return None if own is None else own + 0.01 * problem.broadcast.variables["shift"].prod()


def worker(strategy: Any = FedAvg, *, held: float = 0, evaluator: Any = None, **options: Any) -> Worker:
    evaluator = evaluator or Evaluator(batch_size=7, clients_every=1, finetune_steps=3)
    settings = {"sampler": AllClients(), **OPTIONS, **options.pop("settings", {})}
    made = make_worker(strategy(**settings), sizes=SIZES, evaluator=evaluator, **options)
    data = FederatedData(made.data.splits, blocks(SIZES), seed=0, holdout=0.3, held_out_clients=held)
    return replace(made, data=data)


def accuracy(vector: Tensor, made: Worker, client: int) -> float:
    source, indices = made.data.splits.train, torch.from_numpy(made.data.holdout_indices(client))
    scores = linear(source.inputs[indices], vector[:15].view(3, 5), vector[15:])  # type: ignore[attr-defined]
    return float((scores.argmax(1) == source.targets[indices]).float().mean())  # type: ignore[attr-defined]


def stepped(vector: Tensor, made: Worker, client: int, steps: int) -> Tensor:
    """Plain SGD on the client's first batches of eight, over and over."""
    source, indices = made.data.splits.train, torch.from_numpy(made.data.train_indices(client))
    batches = indices.split(8)
    for step in range(steps):
        batch, vector = batches[step % len(batches)], vector.clone().requires_grad_()
        scores = linear(source.inputs[batch], vector[:15].view(3, 5), vector[15:])  # type: ignore[attr-defined]
        cross_entropy(scores, source.targets[batch]).backward()  # type: ignore[attr-defined]
        vector = (vector - 0.1 * vector.grad).detach()  # type: ignore[operator]
    return vector


def mean(made: Worker, model: Callable[[int], Tensor], clients: Any = range(4)) -> Any:
    return pytest.approx(np.mean([accuracy(model(client), made, client) for client in clients]), abs=1e-6)


@pytest.mark.parametrize("engine", [EagerTrainer, TracedTrainer, VectorizedTrainer])
def test_each_model_has_the_name_of_its_own(engine: Any) -> None:
    made = worker(Own, trainer=engine(batch_size=8), evaluator=Evaluator(clients_every=1, finetune_steps=5))
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(SIZE, generator=generator)
    own = {client: torch.randn(SIZE, generator=generator) for client in (0, 1, 3)}
    state = ServerState(1, vector)
    state = replace(state, memory=state.memory.updated({c: {"own": own[c], "more": own[c]} for c in own}))
    found = made.examiner.evaluate(state, rounds=2)
    shift = 0.01 * 2 * (14 + 21 + 28 + 7)  # the next round, all clients' weights
    assert found["clients/global/accuracy_mean"] == mean(made, lambda client: vector)
    assert found["clients/personal/accuracy_mean"] == mean(made, lambda client: own[client] + shift, own)
    tuned = {c: stepped(own[c] + shift if c in own else vector, made, c, 5) for c in range(4)}
    assert found["clients/finetuned/accuracy_mean"] == mean(made, tuned.__getitem__)
    assert len({found[f"clients/{model}/accuracy_mean"] for model in ("global", "personal", "finetuned")}) == 3
    made.model.load(vector)
    assert found["test/accuracy"] == made.evaluator.central(made.model, made.data)["test/accuracy"]
    assert not any(name.startswith(("clients/accuracy", "held_out")) for name in found)


def test_only_models_that_there_are_have_names() -> None:
    made = worker(evaluator=Evaluator(clients_every=1))
    found = made.examiner.evaluate(ServerState(1, torch.zeros(SIZE)), rounds=1)
    assert {name.rpartition("/")[0] for name in found} == {"test", "clients/global"}


def test_personal_parameters_are_in_the_personal_model_alone() -> None:
    """Global weights with everybody's initial bias on the one hand, with the client's own on the other."""
    made = worker(settings={"personal": ["net.bias"]}, evaluator=Evaluator(clients_every=1))
    initial = made.model.local.clone()
    state, history = fit(made)
    found = history[-1].metrics
    joined = {c: torch.cat([state.vector, state.memory[c]["personal"]]) for c in range(4)}
    assert found["clients/personal/accuracy_mean"] == mean(made, joined.__getitem__)
    joint = torch.cat([state.vector, initial[15:]])
    assert found["clients/global/accuracy_mean"] == mean(made, lambda client: joint)
    made.model.load(joint)
    losses = [made.evaluator.client(made.model, made.data, client)["test/loss"] for client in range(4)]
    assert found["clients/global/loss_mean"] == pytest.approx(np.mean(losses), abs=1e-12)
    assert abs(found["clients/personal/loss_mean"] - np.mean(losses)) > 1e-3
    assert found["test/loss"] == made.evaluator.central(made.model, made.data)["test/loss"]


def test_a_finetuned_model_follows_from_round_and_client_alone() -> None:
    """Clients that are evaluated apart, and after others, are what they are together; shuffled batches, FedProx."""
    trainer = EagerTrainer(batch_size=4, shuffle=True)
    made = worker(FedProx, trainer=trainer, settings={"mu": 1.0})
    vector = torch.linspace(-1, 1, SIZE)
    all_of_it = made.examiner.due(1, 2)
    assert all_of_it is not None
    whole = made.examiner.evaluate_share(vector, 1, all_of_it, {}).clients
    alone = [made.examiner.evaluate_share(vector, 1, replace(all_of_it, clients=[c]), {}).clients for c in (2, 0)]
    assert (alone[0][2], alone[1][0]) == (whole[2], whole[0])
    before = torch.get_rng_state()
    again = made.examiner.evaluate_share(vector, 2, replace(all_of_it, clients=[0]), {}).clients
    assert torch.equal(torch.get_rng_state(), before)
    assert again[0]["global"] == whole[0]["global"]
    assert again[0]["finetuned"] != whole[0]["finetuned"]  # another round has other batches
    plain = worker(trainer=trainer).examiner.evaluate_share(vector, 1, all_of_it, {}).clients
    assert plain == whole  # mu has no part in it


def test_finetuning_starts_the_optimizer_afresh_and_leaves_client_memory_alone() -> None:
    trainer = EagerTrainer(batch_size=8, keep_optimizer_state=True, local_steps=2)
    tuned, plain = (worker(trainer=trainer, evaluator=Evaluator(clients_every=1, finetune_steps=n)) for n in (3, 0))
    (first, rows), (second, _) = fit(tuned), fit(plain)
    assert torch.equal(first.vector, second.vector)
    assert all(torch.equal(t, second.memory[c][n]) for c in range(4) for n, t in first.memory[c].items())
    start = {c: stepped(first.vector, tuned, c, 3) for c in range(4)}
    assert rows[-1].metrics["clients/finetuned/accuracy_mean"] == mean(tuned, start.__getitem__)


@pytest.mark.parametrize(("workers", "here"), [(2, False), (2, True)])
def test_workers_find_what_one_finds(workers: int, here: bool) -> None:
    make = partial(worker, Own, held=1, trainer=EagerTrainer(batch_size=8, shuffle=True))
    state = ServerState(1, torch.linspace(-1, 1, SIZE))
    memory = {c: {"own": torch.full((SIZE,), c / 10), "more": torch.ones(2)} for c in range(2)}
    state = replace(state, memory=state.memory.updated(memory))
    backend = started(make, workers, trains_here=here)
    found = backend.evaluate(state, rounds=2)
    assert found == make().examiner.evaluate(state, rounds=2)
    assert {name.rpartition("/")[0] for name in found if "client" in name} == {
        "clients/global", "clients/personal", "clients/finetuned",
        "held_out_clients/global", "held_out_clients/finetuned",
    }  # fmt: skip


def test_a_model_of_another_size_is_refused_by_name() -> None:
    class Short(FedAvg):
        def personal_model(self, problem: LocalProblem) -> Tensor:
            return problem.start[:3]

    made = worker(Short)
    with pytest.raises(ClientError, match=r"client 0.*Short.personal_model gives shape \[3\], must be \[18\]"):
        made.examiner.evaluate(ServerState(1, torch.zeros(SIZE)), rounds=1)


# Clients that never train.


def test_held_out_clients_have_the_last_ids_and_their_own_samples() -> None:
    whole, held = (
        FederatedData(worker().data.splits, blocks(SIZES), seed=3, holdout=0.3, held_out_clients=n) for n in (0, 2)
    )
    never = sorted(generator_for(3, 0, SERVER, "held-out clients").choice(4, 2, replace=False).tolist())
    order = [client for client in range(4) if client not in never] + never
    assert order != [0, 1, 2, 3]
    assert (held.num_clients, list(held.held_out_clients)) == (2, [2, 3])
    assert held.sizes.tolist() == [whole.sizes[client] for client in order[:2]]
    for new, old in enumerate(order):
        assert np.array_equal(held.train_indices(new), whole.train_indices(old))
        assert np.array_equal(held.holdout_indices(new), whole.holdout_indices(old))
    assert held.holding_out().tolist() == [0, 1, 2, 3]
    counts, old = held.label_counts(), whole.label_counts()
    assert counts is not None
    assert old is not None
    assert counts.tolist() == old[order[:2]].tolist()
    part = held.only([3], test=False)
    assert (part.holdout_indices(3) >= 0).all()
    with pytest.raises(ValueError, match="client 0 are not held"):
        part.train_indices(0)


def test_held_out_clients_never_train_and_weigh_nothing() -> None:
    made = worker(held=0.5, settings={"sampler": UniformSampler(fraction=1.0), "rounds": 3})
    state, history = fit(made)
    assert {report.client_id for report in history[-1].reports} == {0, 1}
    again = worker(held=0.5, settings={"rounds": 3}, evaluator=Evaluator())
    expected, _ = fit(replace(again, data=_without(again)))
    assert torch.equal(state.vector, expected.vector)
    metrics = history[-1].metrics
    assert metrics["held_out_clients/global/accuracy_mean"] == mean(made, lambda c: state.vector, (2, 3))
    assert metrics["held_out_clients/finetuned/accuracy_mean"] == mean(
        made, lambda c: stepped(state.vector, made, c, 3), (2, 3)
    )
    assert metrics["clients/global/accuracy_mean"] == mean(made, lambda c: state.vector, (0, 1))


def _without(made: Worker) -> FederatedData:
    """The clients that take part, alone, with the same samples in the same order."""
    whole = made.data.only((0, 1), test=True)
    whole.held_out_clients = range(0)
    return whole


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (-1, "must be a whole number of clients, or a fraction below 1"),
        (1.5, "must be a whole number of clients, or a fraction below 1"),
        (True, "must be a whole number of clients, or a fraction below 1"),
        (float("nan"), "must be a whole number of clients, or a fraction below 1"),
        ("2", "must be a whole number of clients, or a fraction below 1"),
        (4, "of 4 clients, at least one has to take part"),
        (0.9, "of 4 clients, at least one has to take part"),
    ],
)
def test_impossible_numbers_of_held_out_clients_are_refused(number: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^held_out_clients={number}: {message}$"):
        worker(held=number)


def test_held_out_clients_need_samples_to_be_evaluated_on() -> None:
    splits = worker().data.splits
    with pytest.raises(ValueError, match=r"^held_out_clients=1: .* set holdout, such as 0.2$"):
        FederatedData(splits, blocks(SIZES), seed=0, held_out_clients=1)
    alone = (1, 1, 1)
    with pytest.raises(ValueError, match=r"^held_out_clients=2: each has a single sample"):
        FederatedData(replace(splits, train=splits.train.subset(np.arange(3))), blocks(alone), seed=0, holdout=0.5,
                      held_out_clients=2)  # fmt: skip


def test_the_server_has_no_samples_of_held_out_clients() -> None:
    data = FederatedData(worker().data.splits, blocks(SIZES), seed=3, holdout=0.3, root_samples=20, held_out_clients=2)
    whole = FederatedData(worker().data.splits, blocks(SIZES), seed=3, holdout=0.3, held_out_clients=2)
    for client in (2, 3):
        assert len(data.train_indices(client)) == len(whole.train_indices(client))
        assert data.holdout_size(client) == whole.holdout_size(client)
    assert data.num_root_samples == 20


RUN = (
    "dataset=synthetic_classification", "dataset.num_samples=300", "dataset.input_shape=[20]", "seed=5", "logger=none",
    "partition.num_clients=6", "holdout=0.3", "held_out_clients=0.34", "evaluation.clients_every=1", "log_clients=true",
    "evaluation.finetune_steps=3", "strategy.personal=['*bias']", "strategy.rounds=2", "trainer.shuffle=true",
)  # fmt: skip


def test_a_finished_run_is_evaluated_as_it_was_while_it_trained(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=run").code == 0
    trained = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    done = cli("run=run", "clients=true", main=evaluate)
    assert done.code == 0, done.err
    result = json.loads(Path("run/evaluation.json").read_text())
    assert result["clients"] == {name: value for name, value in trained.items() if "clients/" in name and "_" in name}
    assert len(result["clients"]) == 5 * 12
    assert list(result["per_client"][0]) == [
        "client_id", "num_samples", "global/loss", "global/accuracy", "personal/loss", "personal/accuracy",
        "finetuned/loss", "finetuned/accuracy",
    ]  # fmt: skip
    assert "personal/loss" not in result["per_client"][5]
    assert "6 clients, held out samples" in done.out
    assert cli("run=run", "clients=true", "finetune_steps=0", main=evaluate).code == 0
    assert len(json.loads(Path("run/evaluation.json").read_text())["clients"]) == 3 * 12


def test_asking_for_what_is_never_evaluated_is_refused(cli: Any) -> None:
    done = cli("evaluation.finetune_steps=3", "hydra.run.dir=run")
    assert done.err == (
        "error: evaluation.finetune_steps=3: clients are never evaluated: set evaluation.clients_every\n"
    )
    assert "held_out_clients=10: of 10 clients" in cli("held_out_clients=10", "holdout=0.1", "hydra.run.dir=run").err


@pytest.mark.mpi
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["process x 2", "mpi x 3", "mpi x 3, dedicated server"])
def test_backends_find_the_same_to_the_bit(backend: str, tmp_path: Path) -> None:
    def rows(folder: Path, processes: int, *overrides: str) -> Any:
        command = [sys.executable, "-m", "flrl.train", *RUN, *overrides, f"hydra.run.dir={folder}"]
        if processes:
            command = [MPIEXEC, "--oversubscribe", "--timeout", "300", "-n", str(processes), *command]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMPI_MCA_btl": "self,sm"}
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=400)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{n: v for n, v in json.loads(line).items() if not n.startswith("time/")} for line in lines]

    assert Path(MPIEXEC).exists() or shutil.which(MPIEXEC)
    processes, overrides = BACKENDS[backend]
    assert rows(tmp_path / "there", processes, *overrides) == rows(tmp_path / "serial", 0)
