"""`flrl-verify`: prints one line for a run that can be repeated, and finds what differs in one that cannot."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

from flrl.layout import checksum
from flrl.verify import main

RUN = ("strategy=scaffold", "strategy.rounds=5", "strategy.sampler.num=4", "logger=none", "hydra.run.dir=run")
LAST = "run/checkpoints/round-00005"


@pytest.fixture
def verify(cli: Any) -> Any:
    assert cli(*RUN).code == 0
    return partial(cli, "run=run", main=main)


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run", name).read_text().splitlines()]


def rewrite(name: str, change: Any) -> None:
    changed = rows(name)
    change(changed)
    Path("run", name).write_text("".join(json.dumps(row) + "\n" for row in changed))


def test_a_run_that_can_be_repeated_is_one_line(verify: Any) -> None:
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    for arguments, verified in {
        (): "rounds 1 to 5: every digest is",
        ("rounds=2..3",): "rounds 2 to 3: every digest is",
        ("rounds=5",): "rounds 5 to 5: every digest is",
        (f"client={list(rows('digests.jsonl')[2]['clients'])[1]}", "round=3"): "in round 3: its update is",
    }.items():
        done = verify(*arguments)
        assert (done.code, done.err) == (0, "")
        assert len(done.out.splitlines()) == 1
        assert done.out.startswith("verified  run  ")
        assert f"{verified} the same" in done.out
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_the_checksums_are_those_of_the_model(verify: Any) -> None:
    vector = load_file(f"{LAST}/state.safetensors")["vector"]
    row = rows("digests.jsonl")[-1]
    assert row["round"] == 5
    assert row["parameters"] == {"net.1.weight": checksum([vector[:640]]), "net.1.bias": checksum([vector[640:]])}
    assert len(row["clients"]) == 4
    assert len({*row["clients"].values()}) == 4


def test_the_first_round_client_and_parameter_that_differ_are_named(verify: Any) -> None:
    chosen = list(rows("digests.jsonl")[2]["clients"])[2]

    def another_update(digests: list[dict[str, Any]]) -> None:
        digests[2]["clients"][chosen] = "0" * 16
        digests[2]["parameters"]["net.1.bias"] = "0" * 16

    rewrite("digests.jsonl", another_update)
    assert verify().code == 0  # details count only where the digest differs
    rewrite("metrics.jsonl", lambda metrics: metrics[2].update(digest="ab" * 32))
    done = verify()
    assert done.code == 1
    first, client, parameter = done.out.splitlines()
    assert first.startswith(f"differs   run  round 3: recorded {'ab' * 32}, recomputed ")
    assert client.strip() == f"first client: {chosen} (1 of 4 differ)"
    assert parameter.strip() == "first parameter: net.1.bias (1 of 2 differ)"
    assert verify("rounds=1..2").code == 0
    done = verify(f"client={chosen}", "round=3")
    assert done.code == 1
    assert f"client {chosen} in round 3: recorded {'0' * 16}, recomputed " in done.out


def test_another_learning_rate_is_found_in_the_first_round(verify: Any) -> None:
    config = OmegaConf.load("run/.hydra/config.yaml")
    config.model.optimizer.lr *= 1 + 1e-6
    OmegaConf.save(config, "run/.hydra/config.yaml")
    done = verify()
    assert done.code == 1
    assert "round 1: recorded" in done.out
    assert "(4 of 4 differ)" in done.out


def test_another_server_step_is_distinguished_from_another_client(verify: Any) -> None:
    config = OmegaConf.load("run/.hydra/config.yaml")
    config.strategy.server_optimizer.lr = 0.5
    OmegaConf.save(config, "run/.hydra/config.yaml")
    done = verify("rounds=5")
    assert done.code == 1
    assert "no client's update: it is the server's step that differs" in done.out
    size = float(done.out.split("first parameter: net.1.weight (2 of 2 differ), by ")[1].split(" ")[0])
    kept, before = (load_file(f"run/checkpoints/round-0000{r}/state.safetensors")["vector"] for r in (5, 4))
    assert size == pytest.approx(float((kept - before)[:640].abs().max()) / 2, rel=0.01)


def test_other_threads_are_noted(verify: Any) -> None:
    done = verify("rounds=5", "backend.threads=2")
    assert "the run had backend.threads=1, this is 2: expect other bits" in done.out


@pytest.mark.slow
def test_verified_on_another_backend(verify: Any) -> None:
    done = verify("rounds=5", "backend=process", "backend.workers=2")
    assert (done.code, done.err) == (0, "")


@pytest.mark.slow
def test_the_servers_own_updates_are_recomputed_and_resumed(cli: Any) -> None:
    """FLTrust's root samples and updates are the same on another backend, in a resumed run, and in a verification."""
    trust = ("strategy/aggregator=fltrust", "root_samples=50", "logger=none")
    process = ("backend=process", "backend.workers=2")
    assert cli(*trust, "strategy.rounds=2", *process, "hydra.run.dir=first").code == 0
    assert cli("resume=first", "strategy.rounds=4", "hydra.run.dir=second", "backend=serial").code == 0
    assert cli(*trust, "strategy.rounds=4", "hydra.run.dir=third").code == 0
    digests = [
        [json.loads(row)["digest"] for row in Path(run, "metrics.jsonl").read_text().splitlines()]
        for run in ("second", "third")
    ]
    assert len(set(digests[0])) == len(digests[0]) >= 4
    assert digests[0] == digests[1]
    assert cli("run=third", main=main).code == 0


WRONG = {
    ("rounds=9",): "rounds=9: run holds rounds 1 to 5",
    ("rounds=4..2",): "rounds=4..2: run holds rounds 1 to 5",
    ("rounds=x",): "rounds=x: must be one round, 3, or several, 3..5",
    ("client=3",): "client and round come together",
    ("client=99", "round=1"): "client=99: takes no part in round 1; its cohort is ",
    ("run=nowhere",): "run=nowhere: there is no run in this folder",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.items(), ids=[" ".join(key) for key in WRONG])
def test_what_cannot_be_verified_is_an_error_of_one_line(verify: Any, arguments: tuple[str, ...], message: str) -> None:
    done = verify(*arguments)
    assert done.code == 1
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_a_checkpoint_of_another_history_is_refused(verify: Any) -> None:
    rewrite("metrics.jsonl", lambda metrics: metrics[3].update(digest="ab" * 32))
    assert "round-00004 is not the state after round 4" in verify("rounds=5").err


@pytest.mark.slow
def test_a_client_is_retrained_with_its_client_batch(cli: Any) -> None:
    """The last bits of a convolution's step depend on the number of clients in the batch."""
    module = (f"--config-dir={Path(__file__).parent / 'conf'}", "model=convolved", "trainer=vectorized")
    cohort = ("partition.num_clients=40", "strategy.sampler.num=8", "strategy.rounds=1")
    assert cli(*module, *cohort, "trainer.width=3", "logger=none", "hydra.run.dir=run").code == 0
    for client in rows("digests.jsonl")[0]["clients"]:
        done = cli("run=run", f"client={client}", "round=1", main=main)
        assert (done.code, done.err) == (0, "")
