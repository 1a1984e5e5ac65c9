"""The files that a run leaves are checked against each other before anything is computed from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flrl.data.federated import partition_hash
from flrl.evaluate import main as evaluate
from flrl.layout import digest
from flrl.runs.checkpoint import load_checkpoint, save_checkpoint
from flrl.types import ServerState
from flrl.verify import main as verify
from tests.toys import Late

RUN = ("strategy.rounds=3", "partition.num_clients=3", "logger=none", "hydra.run.dir=run")
MODEL, PARTITION = Path("run/model.safetensors"), Path("run/partition.npz")
NEWEST = Path("run/checkpoints/round-00003")


def recorded() -> dict[int, str]:
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return {row["round"]: row["digest"] for row in rows}


@pytest.fixture
def refused(cli: Any) -> Any:
    """`refused()` is the one line with which both commands refuse the run's folder, which they leave alone."""
    assert cli(*RUN).code == 0
    for main in (verify, evaluate):
        assert cli("run=run", main=main).code == 0
    Path("run/evaluation.json").unlink()

    def refuse() -> str:
        before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
        finished = [cli("run=run", main=main) for main in (verify, evaluate)]
        assert [(done.code, done.out) for done in finished] == [(1, ""), (1, "")]
        assert finished[0].err == finished[1].err
        assert finished[0].err.count("\n") == 1
        assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
        return finished[0].err.removeprefix("error: ").removesuffix("\n")

    return refuse


def test_one_bias_in_the_final_model_is_found(refused: Any) -> None:
    tensors = load_file(MODEL)
    tensors["net.1.bias"][3] = 50.0
    save_file(tensors, MODEL)
    found = digest(torch.cat([tensors["net.1.weight"].flatten(), tensors["net.1.bias"]]))
    assert refused() == f"{MODEL} has digest {found}, metrics.jsonl names {recorded()[3]} for round 3"


def test_the_final_model_of_a_run_without_summary_is_that_of_a_row(refused: Any, cli: Any) -> None:
    Path("run/summary.json").unlink()
    assert cli("run=run", main=evaluate).code == 0
    tensors = load_file(MODEL)
    tensors["net.1.bias"][3] = 50.0
    save_file(tensors, MODEL)
    Path("run/evaluation.json").unlink()
    assert f"metrics.jsonl names {recorded()[3]} for round 3" in refused()


def test_the_model_of_an_earlier_end_is_taken_while_a_longer_run_is_under_way(refused: Any, cli: Any) -> None:
    final = MODEL.read_bytes()
    assert cli("resume=run", "strategy.rounds=4").code == 0
    MODEL.write_bytes(final)
    assert f"{MODEL} has digest {recorded()[3]}, metrics.jsonl names {recorded()[4]} for round 4" == refused()
    Path("run/summary.json").unlink()
    assert cli("run=run", main=verify).code == 0


def test_the_newest_checkpoint_is_compared_with_its_row(refused: Any) -> None:
    state = load_checkpoint(NEWEST, {})
    other = ServerState(3, state.vector + 1, state.optimizer)
    identity = json.loads((NEWEST / "state.json").read_text())["identity"]
    for path in NEWEST.iterdir():
        path.unlink()
    NEWEST.rmdir()
    save_checkpoint(Path("run"), other, identity)
    assert refused() == f"{NEWEST} has digest {digest(other.vector)}, metrics.jsonl names {recorded()[3]} for round 3"


def test_a_summary_of_another_run_is_found(refused: Any) -> None:
    path = Path("run/summary.json")
    path.write_text(path.read_text().replace(recorded()[3], "ab" * 32))
    assert refused() == f"{path} has digest {'ab' * 32}, metrics.jsonl names {recorded()[3]} for round 3"


def test_a_partitions_hash_is_checked(refused: Any) -> None:
    with np.load(PARTITION) as saved:
        arrays = dict(saved)
    named = str(arrays["hash"])
    arrays["indices"][[0, 1]] = arrays["indices"][[1, 0]]
    np.savez(PARTITION, **arrays)
    found = partition_hash(**{name: arrays[name] for name in ("ends", "sizes", "indices")})
    assert refused() == f"{PARTITION} has hash {found}, it names {named}"
    np.savez(PARTITION, **arrays | {"hash": np.array(found)})
    assert refused() == f"{PARTITION} has hash {found}, summary.json names {named}"
    Path("run/summary.json").unlink()
    assert refused() == f"{PARTITION} has hash {found}, the newest checkpoint names {named}"


GOES_ON = "; flrl-train resume=run goes on from the last good state, if there is one"
TORN = {
    MODEL: "cannot be loaded into the run's model: ",
    PARTITION: "is damaged: ",
    Path("run/summary.json"): "is damaged: ",
    Path("run/.hydra/config.yaml"): "is not the configuration of a run",
    Path("run/metrics.jsonl"): f"line 3 is damaged{GOES_ON}",
    Path("run/digests.jsonl"): f"line 3 is damaged{GOES_ON}",
    NEWEST / "state.json": "is not a valid checkpoint: ",
    NEWEST / "state.safetensors": "is not a valid checkpoint: ",
}


ALIKE = (Path("run/metrics.jsonl"), NEWEST / "state.json", Path("run/summary.json"))


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=str(path), marks=[pytest.mark.slow] * (path in ALIKE)) for path in TORN]
)
def test_a_torn_file_is_named_in_one_line(refused: Any, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: -max(10, len(data) // 4)] if path.name != "config.yaml" else b"name: run\n")
    assert str(NEWEST if path.parent == NEWEST else path) in refused()
    assert TORN[path] in refused()
    assert refused().endswith(GOES_ON) == (path.parent == NEWEST or path.suffix in (".jsonl", ".json"))


def test_an_incomplete_last_row_is_what_a_kill_leaves(refused: Any, cli: Any) -> None:
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "test/lo')
    assert refused() == f"run/metrics.jsonl: line 4 is damaged{GOES_ON}"
    Path("run/summary.json").unlink()
    assert cli("run=run", main=verify).code == 0


class Counted(Late):
    """Has a buffer that is no part of the vector."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(7))


def test_what_is_not_in_the_vector_is_as_it_was_written(cli: Any) -> None:
    Path("my_conf/model").mkdir(parents=True)
    Path("my_conf/model/mine.yaml").write_text("_target_: tests.runs.test_integrity.Counted")
    assert cli("--config-dir=my_conf", "model=mine", *RUN).code == 0
    tensors = load_file(MODEL)
    assert tensors["count"].item() == 7
    save_file(tensors | {"count": torch.tensor(8)}, MODEL)
    named = json.loads(Path("run/summary.json").read_text())["model"]
    for main in (verify, evaluate):
        done = cli("run=run", main=main)
        assert done.code == 1
        assert f"error: {MODEL} has SHA-256 " in done.err
        assert done.err.endswith(f", summary.json names {named}\n")


def test_the_checkpoint_to_be_evaluated_is_compared_too(refused: Any, cli: Any) -> None:
    state = load_checkpoint(NEWEST.with_name("round-00002"), {})
    meta = json.loads((NEWEST.with_name("round-00002") / "state.json").read_text())
    for path in NEWEST.with_name("round-00002").iterdir():
        path.unlink()
    NEWEST.with_name("round-00002").rmdir()
    save_checkpoint(Path("run"), ServerState(2, state.vector + 1, state.optimizer), meta["identity"])
    assert cli("run=run", "round=3", main=evaluate).code == 0
    done = cli("run=run", "round=2", main=evaluate)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"metrics.jsonl names {recorded()[2]} for round 2" in done.err
