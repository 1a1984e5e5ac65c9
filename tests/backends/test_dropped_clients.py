"""A client whose training always raises, and `on_client_failure=drop`: the same on every backend."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.runs.checkpoint import list_checkpoints, load_checkpoint
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.trainers import ClientHooks, EagerTrainer, LocalProblem, Trained
from flrl.types import Broadcast, ClientTask
from tests.backends.launch import Launcher
from tests.backends.subject import BACKENDS, RUN, WHAT_RAISES, causes, rows
from tests.toys import make_worker

pytestmark = pytest.mark.timeout(240)

DROP = ("on_client_failure=drop", "trainer.fault=always", "trainer.mark=null")


@pytest.fixture(scope="module")
def dropped(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("dropped")
    where = f"hydra.run.dir={folder / 'run'}"
    run = launcher.run(*RUN, *DROP, "strategy.rounds=3", where, output=folder / "output.txt")
    assert run.code == 0, run.output
    return rows(folder / "run")


@pytest.mark.parametrize(
    "backend", ["serial", pytest.param("process", marks=pytest.mark.slow), pytest.param("mpi", marks=pytest.mark.mpi)]
)
def test_a_dropped_client_is_named_and_counted_and_too_few_end_the_run(
    backend: str, launcher: Launcher, dropped: list[dict[str, Any]], tmp_path: Path
) -> None:
    processes, own = BACKENDS[backend]
    command = (*RUN, *own, *DROP, "strategy.min_clients=9", f"hydra.run.dir={tmp_path / 'run'}")
    run = launcher.run(*command, "strategy.rounds=3", output=tmp_path / "output.txt", mpi=processes)
    assert run.code == 0, run.output
    assert rows(tmp_path / "run") == dropped
    for row in dropped:
        why = f"client 3, round {row['round']}: {WHAT_RAISES}"
        assert (row["clients/num"], row["clients/rejected"]) == (10, 1)
        assert {r["client_id"]: r["rejected"] for r in row["reports"]} == dict.fromkeys(range(10)) | {3: why}
        assert f"rejected client 3: {why}" in run.output
        # A worker's warning reaches the terminal, its own log and the run's.
        warning = rf"warning: client 3, round {row['round']}: {re.escape(WHAT_RAISES)} \(.*\); its update is left out"
        assert len(re.findall(warning, run.output)) == 1
    logs = {path.name: path.read_text().count("its update is left out") for path in (tmp_path / "run").glob("*.log")}
    assert logs.pop("train.log") == 3
    assert sum(logs.values()) == {"serial": 0, "process": 3, "mpi": 0}[backend]
    resumed = (*command, "strategy.min_clients=10", "strategy.rounds=4", "resume=auto")
    run = launcher.run(*resumed, output=tmp_path / "resumed.txt", mpi=processes)
    assert run.code == 1
    assert causes(run.output) == [
        f"error: round 4: 9 usable updates, strategy.min_clients=10; client 3: client 3, round 4: {WHAT_RAISES}"
    ]
    assert load_checkpoint(list_checkpoints(tmp_path / "run")[-1], {}).round == 3


class OneRaises(EagerTrainer):
    """Client 1's training raises."""

    def fit(self, problem: LocalProblem, hooks: ClientHooks) -> Trained:
        if problem.task.client_id == 1:
            raise RuntimeError("no")
        return super().fit(problem, hooks)


def test_the_weights_of_the_others_are_renormalised() -> None:
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    worker = make_worker(strategy, sizes=(20, 30, 40), trainer=OneRaises(batch_size=8))
    worker = replace(worker, drop_failures=True)
    start = worker.model.vector.clone()

    def trained(*clients: int) -> tuple[torch.Tensor, float]:
        tasks = [
            ClientTask(1, client, size, float(size)) for client, size in enumerate((20, 30, 40)) if client in clients
        ]
        means, weight = worker.train(Broadcast(1, start, 90.0), tasks, lambda report: None)[0].result()
        return means["update"], weight

    (first, _), (third, _), (mean, weight) = trained(0), trained(2), trained(0, 1, 2)
    assert weight == 60.0
    assert mean.tolist() == pytest.approx(((20 * first + 40 * third) / 60).tolist(), rel=1e-12)
