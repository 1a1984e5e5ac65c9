"""A run that is killed goes on to the digest of an undisturbed one; what does not belong is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

POINTS = ("training:1", "training:3", "metrics:4", "checkpoint:1", "rename:3", "pruning:5", "summary:1")
MORE_POINTS = ("training:2", "training:4", "training:5", "metrics:1", "checkpoint:4")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], dict[str, Any]]:
    @cache
    def outcomes(points: tuple[str, ...]) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.kill_points", str(tmp_path_factory.mktemp("killed")), *points]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return outcomes


@pytest.mark.parametrize(
    ("points", "point"),
    [pytest.param(POINTS, point, id=point) for point in POINTS]
    + [pytest.param(MORE_POINTS, point, id=point, marks=pytest.mark.slow) for point in MORE_POINTS],
)
def test_killed_and_resumed_is_undisturbed(outcomes: Any, points: tuple[str, ...], point: str) -> None:
    killed, resumed, outcome = outcomes(points)[point]
    assert (killed, resumed) == (-9, 0)
    assert outcome == outcomes(points)["undisturbed"][2]
    assert [row[0] for row in outcome["rounds"]] == [1, 2, 3, 4, 5]
    assert outcome["csv"] == 6


RUN = ("strategy.rounds=3", "logger=none", "partition.num_clients=3")


def last(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])


def test_a_run_folder_is_resumed_in_place_without_repeating_its_overrides(cli: Any) -> None:
    assert cli(*RUN, "strategy.rounds=5", "seed=3", "hydra.run.dir=whole").code == 0
    assert cli(*RUN, "seed=3", "hydra.run.dir=part").code == 0
    done = cli("resume=part", "strategy.rounds=5")
    assert done.code == 0
    assert "resumed after round 3" in done.out
    assert last("part") == last("part") | {k: v for k, v in last("whole").items() if not k.startswith("time/")}
    assert json.loads(Path("part/summary.json").read_text())["resumed_from"] == "part"
    resumed = cli("resume=part")
    assert (resumed.code, last("part")["round"]) == (0, 5)


def test_a_run_is_resumed_into_another_folder(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=first", "log_clients=true").code == 0
    before = {path: path.read_bytes() for path in Path("first").rglob("*") if path.is_file()}
    assert cli("resume=first", "strategy.rounds=4", "hydra.run.dir=second").code == 0
    assert {path: path.read_bytes() for path in Path("first").rglob("*") if path.is_file()} == before
    assert len(Path("second/metrics.jsonl").read_text().splitlines()) == 4
    assert len(Path("second/clients.jsonl").read_text().splitlines()) == 12


def test_auto_starts_where_there_is_nothing_and_ends_where_all_is_done(cli: Any) -> None:
    assert cli(*RUN, "resume=auto", "hydra.run.dir=run").code == 0
    digest = last("run")["digest"]
    assert cli(*RUN, "resume=auto", "hydra.run.dir=run").code == 0
    assert (last("run")["digest"], last("run")["round"]) == (digest, 3)


WRONG = {
    "model": (
        "model=mlp_2nn",
        "model.net._target_ was flrl.models.nets.softmax_regression, is flrl.models.nets.mlp_2nn",
    ),
    "partition": ("partition.num_clients=4", "partition.num_clients was 3, is 4"),
    "seed": ("seed=1", "seed was 0, is 1"),
    "strategy": ("strategy=fedprox", "strategy._target_ was flrl.strategies.FedAvg, is flrl.strategies.FedProx"),
    "optimizer": ("strategy=fedadam", "server_optimizer._target_ was torch.optim.SGD, is torch.optim.Adam"),
}


@pytest.mark.parametrize(
    ("argument", "message"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name != "strategy")) for name, case in WRONG.items()],
)
def test_another_run_is_refused_and_nothing_is_changed(cli: Any, argument: str, message: str) -> None:
    assert cli(*RUN, "hydra.run.dir=run").code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    done = cli("resume=run", argument, "hydra.run.dir=other")
    assert done.code == 1
    assert message in done.err
    assert "nothing was changed" in done.err
    done = cli(*RUN, argument, "resume=auto", "hydra.run.dir=run")
    assert done.code == 1
    after = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert after == before
    assert cli("resume=run", "strategy.rounds=4").code == 0


IDENTITIES = {
    "model.optimizer._target_=torch.optim.Adam": "'clients': 'torch.optim.SGD'}, is {'server': 'torch.optim.SGD', 'cl",
    "model=mlp_2nn": "(model was",
    "partition.num_clients=4": "(partition was",
    "partition.seed=1": "; partition.seed was 0, is 1)",
    "seed=1": "; seed was 0, is 1; partition.seed was 0, is 1; model_seed was 0, is 1; sampling_seed was 0, is 1)",
    "model_seed=1": "(model_seed was 0, is 1)",
    "sampling_seed=1": "(sampling_seed was 0, is 1)",
    "strategy=fedprox": "(strategy was flrl.strategies.FedAvg, is flrl.strategies.FedProx)",
}


FAST = ("partition.seed=1",)  # the others differ by what is compared alone


@pytest.mark.parametrize(
    ("argument", "message"),
    [pytest.param(*case, id=case[0], marks=[pytest.mark.slow] * (case[0] not in FAST)) for case in IDENTITIES.items()],
)
def test_a_checkpoint_of_another_run_is_refused_though_the_configuration_was_forged(
    cli: Any, argument: str, message: str
) -> None:
    common = (*RUN, "trainer.keep_optimizer_state=true")
    assert cli(*common, "hydra.run.dir=run").code == 0
    assert cli(*common, argument, "~model.optimizer.momentum", "hydra.run.dir=forged").code == 0
    Path("run/.hydra/config.yaml").write_text(Path("forged/.hydra/config.yaml").read_text())
    done = cli(*common, argument, "~model.optimizer.momentum", "hydra.run.dir=run", "resume=auto")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "round-00003 belongs to another run (" in done.err
    assert message in done.err


def test_a_checkpoint_of_another_history_is_refused(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=run").code == 0
    path = Path("run/metrics.jsonl")
    path.write_text(path.read_text().replace(last("run")["digest"], "0" * 64))
    assert "is not the state after round 3 of run" in cli("resume=run", "strategy.rounds=4").err
    path.write_text("")
    assert "run/metrics.jsonl should hold rounds 1 to 3, it holds []" in cli("resume=run", "strategy.rounds=4").err


def test_a_refused_typo_does_not_stick(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=run").code == 0
    assert cli("resume=run", "strategy.rounds=abc").code == 1
    assert cli("resume=run", "strategy.rounds=4").code == 0
    assert last("run")["round"] == 4


def test_a_users_own_model_is_found_on_resume(cli: Any) -> None:
    folder = Path("my_conf/model")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: tests.toys.Late")
    for name in ("run", "again"):
        assert cli("--config-dir=my_conf", "model=mine", *RUN, f"hydra.run.dir={name}").code == 0
    assert last("run")["digest"] == last("again")["digest"]
    assert cli("resume=run", "strategy.rounds=4").code == 0
    assert cli("resume=again", "--config-dir", "my_conf", "strategy.rounds=4").code == 0
    assert last("run")["digest"] == last("again")["digest"]


def test_a_finished_run_without_checkpoints_is_not_started_anew(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=run", "callbacks=none").code == 0
    done = cli("resume=run", "strategy.rounds=4")
    assert done.err == "error: run holds a finished run without checkpoints: there is nothing to resume from\n"
    assert last("run")["round"] == 3


def test_a_taken_folder_is_not_resumed_into(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=first").code == 0
    assert cli(*RUN, "seed=1", "hydra.run.dir=second").code == 0
    assert "second already holds a run" in cli("resume=first", "hydra.run.dir=second").err
    Path("second/metrics.jsonl").unlink()
    assert "second already holds a run" in cli(*RUN, "hydra.run.dir=second").err


def test_two_processes_do_not_share_a_folder(cli: Any) -> None:
    from filelock import FileLock

    Path("run").mkdir()
    with FileLock("run/.lock"):
        done = cli(*RUN, "hydra.run.dir=run")
    assert done.code == 1
    assert done.err == f"error: another process is running in {Path('run').resolve()}\n"


def test_a_sweep_does_not_overwrite_runs(cli: Any) -> None:
    sweep = ("-m", "seed=0,1", "strategy.rounds=1", "logger=none", "hydra.sweep.dir=sweep")
    assert cli(*sweep).code == 0
    assert "sweep/0 already holds a run" in cli(*sweep).err
    done = cli(*sweep[:-1], "hydra.sweep.dir=other", "hydra.sweep.subdir=same")
    assert done.code == 1
    assert "already holds a run" in done.err


def test_early_stopping_waits_for_an_evaluation(cli: Any) -> None:
    early = (
        "callbacks=[default,early_stopping]",
        "evaluation.every=3",
        "strategy.rounds=4",
        "hydra.run.dir=run",
        "logger=none",
    )
    assert cli(*early).code == 0
    assert last("run")["round"] == 4


def test_a_logger_that_is_refused_does_not_stick(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert cli(*RUN, "hydra.run.dir=run").code == 0
    assert "needs an API key" in cli("resume=run", "logger=wandb").err
    assert cli("resume=run", "strategy.rounds=4").code == 0


def test_another_backend_does_not_inherit_settings_that_it_does_not_have(cli: Any) -> None:
    mpi = ("backend=mpi", "backend.schedule=random", "backend.threads=2")
    assert cli(*RUN, *mpi, "hydra.run.dir=run").code == 0
    done = cli("resume=run", "backend=serial", "strategy.rounds=4")
    torch.set_num_threads(1)
    assert (done.code, done.err) == (0, "")
    config = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert config["backend"] == {
        "_target_": "flrl.backends.SerialBackend",
        "threads": 2,
        "device": "cpu",
        "portable": False,
    }
