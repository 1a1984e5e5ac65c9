"""What was on the wire, recomputed: the same checksums as in the run, from a checkpoint or from the start."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from flrl.backends.serial import SerialBackend
from flrl.errors import FlrlError
from flrl.evaluate_run import saved_config
from flrl.recorded import SavedRun
from flrl.replay import Replay, replaying
from tests.attacks.conftest import Finished


@contextmanager
def opened(folder: Path) -> Iterator[Replay]:
    with replaying(SavedRun.read(folder, saved_config(folder, None)), SerialBackend()) as replay:
        yield replay


def checksums(folder: Path) -> dict[int, dict[str, str]]:
    rows = [json.loads(line) for line in (folder / "digests.jsonl").read_text().splitlines()]
    return {row["round"]: row["clients"] for row in rows}


def test_every_exchange_of_clients_with_memory_is_the_recorded_one(finished: Finished) -> None:
    folder = finished("stateful")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with opened(folder) as replay:
        for round in (4, 2, 3):  # from a checkpoint, from the start, from the state before
            clients = checksums(folder)[round]
            assert replay.cohort(round) == [int(client) for client in clients]
            for client in map(int, clients):
                exchange = replay.exchange(round, client)  # compares the checksum
                assert {*exchange.vectors} == {"update", "control"}
                assert int((exchange.vectors["update"] != 0).sum()) <= 325  # top-k of 650
                assert torch.equal(exchange.broadcast.vector, replay.model_before(round))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_models_between_the_rounds_are_those_of_the_checkpoints(finished: Finished) -> None:
    folder = finished("stateful")
    with opened(folder) as replay:
        for round in (3, 4, 3, 4):  # the second time from what was kept
            kept = load_file(folder / f"checkpoints/round-{round:05d}/state.safetensors")["vector"]
            assert torch.equal(replay.model_before(round + 1), kept)
        initial = replay.recipe.module()
        assert torch.equal(replay.model_before(1), replay.layout.flatten(initial))


def test_the_mean_over_the_cohort_is_the_servers_step(finished: Finished) -> None:
    with opened(finished("fedavg")) as replay:
        exchange = replay.whole_exchange(2)
        parts = [replay.exchange(2, task.client_id) for task in exchange.tasks]
        weights = torch.tensor([task.weight for task in exchange.tasks], dtype=torch.float64)
        rows = torch.stack([part.vectors["update"] for part in parts])
        torch.testing.assert_close(exchange.vectors["update"], weights @ rows / weights.sum(), rtol=0, atol=1e-15)
        step = replay.model_before(3).double() - replay.model_before(2).double()
        torch.testing.assert_close(exchange.vectors["update"], step, rtol=0, atol=1e-7)


def test_the_truth_is_what_was_trained_on_in_that_round(finished: Finished) -> None:
    """Three steps of 50 samples a round go on where the client's last round ended."""
    folder = finished("stateful")
    with opened(folder) as replay:
        times: dict[int, int] = {}
        for round, clients in checksums(folder).items():
            for client in map(int, clients):
                replay.exchange(round, client)
                own = replay.worker.data.train_indices(client)
                batches = [own[at : at + 50] for at in range(0, len(own), 50)]
                first = 3 * times.get(client, 0)
                used = [batches[(first + step) % len(batches)] for step in range(3)]
                assert replay.trained_on(round, client)[1].tolist() == list(
                    dict.fromkeys(np.concatenate(used).tolist())
                )
                times[client] = times.get(client, 0) + 1
        assert max(times.values()) > 1


def test_a_client_batch_with_personal_parameters_and_shuffled_batches(finished: Finished) -> None:
    with opened(finished("personal")) as replay:
        [client, _] = replay.cohort(2)
        exchange = replay.exchange(2, client)
        assert exchange.vectors["update"].shape == (replay.layout.size,) == (7 * 65 + 7 * 8,)
        assert sorted(replay.trained_on(2, client)[1]) == sorted(replay.worker.data.train_indices(client))
        assert list(replay.trained_on(2, client)[1]) != list(replay.worker.data.train_indices(client))


def test_what_differs_is_named(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished("stateful"), folder)
    rows = [json.loads(line) for line in (folder / "digests.jsonl").read_text().splitlines()]
    client = next(iter(rows[3]["clients"]))
    rows[3]["clients"][client] = "0" * 16
    (folder / "digests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with opened(folder) as replay, pytest.raises(FlrlError, match=rf"client {client} in round 4: recorded 0{{16}}, "):
        replay.exchange(4, int(client))
    config = OmegaConf.load(folder / ".hydra/config.yaml")
    config.model.optimizer.lr = 0.2
    OmegaConf.save(config, folder / ".hydra/config.yaml")
    with opened(folder) as replay:
        with pytest.raises(FlrlError, match=r"round 1: recorded \w+, recomputed \w+; first client: .*first parameter"):
            replay.exchange(3, 0)
        with pytest.raises(FlrlError, match="round 1: recorded"):  # and again: nothing is taken for granted
            replay.exchange(3, 0)


def test_a_client_that_took_no_part_is_an_error(finished: Finished) -> None:
    with opened(finished("fedsgd")) as replay:
        cohort = ", ".join(map(str, replay.cohort(1)))
        with pytest.raises(ValueError, match=rf"^client=9999: takes no part in round 1; its cohort is {cohort}$"):
            replay.exchange(1, 9999)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stateful", "personal"])
def test_a_run_of_several_processes_is_replayed_in_one(finished: Finished, name: str) -> None:
    folder = finished(name, "backend=process", "backend.workers=2")
    with opened(folder) as there, opened(finished(name)) as here:
        for client in there.cohort(2):
            found, expected = there.exchange(2, client), here.exchange(2, client)
            assert torch.equal(found.vectors["update"], expected.vectors["update"])


def test_of_a_malicious_client_the_truth_is_what_it_trained_on(cli: Any) -> None:
    from flrl.attack import main

    run = ("adversary=label_flip", "adversary.clients=[0,1]", "trainer.local_steps=1", "trainer.batch_size=4")
    assert cli(*run, "strategy.rounds=1", "callbacks=none", "hydra.run.dir=run").code == 0
    for client, samples in (("0", 4), ("2", 4), ("all", 40)):
        done = cli("run=run", "attack=label_counts", f"client={client}", main=main)
        assert done.code == 0, done.err
        result = json.loads(Path("run/attacks/label_counts/result.json").read_text())
        assert result["samples"] == samples if "samples" in result else result["label_accuracy"] >= 0.5


@pytest.mark.slow
def test_what_a_transform_measures_is_not_what_was_trained_on(cli: Any) -> None:
    from flrl.attack import main

    run = ("model=mlp_2nn", "strategy/transforms=soteria", "trainer.local_steps=1", "trainer.batch_size=1")
    assert cli(*run, "strategy.rounds=1", "callbacks=none", "hydra.run.dir=run").code == 0
    done = cli("run=run", "attack=analytic", main=main)
    assert done.code == 0, done.err
    result = json.loads(Path("run/attacks/analytic/result.json").read_text())
    assert (result["samples"], result["reconstructed"], result["label_accuracy"]) == (1, 1, 1.0)
