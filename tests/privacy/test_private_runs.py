"""Runs with a mechanism, from the command line: budgets, the ledger over crashes, bits, what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flrl.callbacks import Callback
from flrl.privacy import epsilon, sampled_gaussian
from flrl.types import ClientReport
from flrl.verify import main as verify

DP = ("strategy/transforms=dp", "strategy/sampler=poisson", "strategy.sampler.probability=0.5", "logger=none")
RDP = "privacy.accountant=rdp"
ROOT = Path(__file__).parents[2]


class Killing(Callback):
    """Kills this process when the first client of a round has trained."""

    def __init__(self, *, round: int) -> None:
        self.round, self.now = round, 0

    def on_round_start(self, round: int, cohort: Any) -> None:
        self.now = round

    def on_client_end(self, report: ClientReport) -> None:
        if self.now == self.round:
            os.kill(os.getpid(), signal.SIGKILL)


def rows(folder: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, name).read_text().splitlines()]


def spent(folder: str) -> list[float]:
    return [row["privacy/epsilon"] for row in rows(folder) if row["round"]]


def test_a_run_has_its_epsilon_in_rows_summary_and_ledger(cli: Any) -> None:
    done = cli(*DP, RDP, "strategy.rounds=2", "hydra.run.dir=run")
    assert done.code == 0, done.err
    found = epsilon(sampled_gaussian(1.0, 0.5, 2), delta=1e-5, accountant="rdp")
    assert spent("run")[-1] == found
    assert json.loads(Path("run/summary.json").read_text())["privacy"]["epsilon"] == found
    assert rows("run", "privacy.jsonl") == [{"round": 1}, {"round": 2}]


def test_the_last_round_within_the_budget_is_evaluated(cli: Any) -> None:
    budget = epsilon(sampled_gaussian(1.0, 0.5, 2), delta=1e-5, accountant="rdp")
    settings = (f"privacy.epsilon={budget}", "strategy.rounds=9", "evaluation.every=5", "hydra.run.dir=run")
    done = cli(*DP, RDP, *settings)
    assert done.code == 0, done.err
    assert "stopped early after round 2\n" in done.out
    assert ["test/accuracy" in row for row in rows("run")] == [False, True]


@pytest.mark.slow
def test_a_budget_is_calibrated_to_kept_and_ends_a_longer_run(cli: Any) -> None:
    noise = "strategy.transforms.dp.noise_multiplier=null"
    done = cli(*DP, RDP, noise, "privacy.epsilon=3", "strategy.rounds=3", "hydra.run.dir=run")
    assert done.code == 0, done.err
    saved = OmegaConf.load("run/.hydra/config.yaml").strategy.transforms.dp.noise_multiplier
    found = epsilon(sampled_gaussian(saved, 0.5, 3), delta=1e-5, accountant="rdp")
    assert 2.99 < found <= 3
    assert spent("run")[-1] == found
    assert rows("run", "privacy.jsonl") == [{"round": 1}, {"round": 2}, {"round": 3}]
    assert f"privacy  epsilon {found:.4g} at delta 1e-05\n" in done.out
    more = cli("resume=run", "strategy.rounds=5", "hydra.run.dir=run")
    assert more.code == 0
    assert more.err.count("stopped after round 3 of 5: the next round would pass privacy.epsilon=3") == 1
    assert "stopped early after round 3\n" in more.out
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["rounds"], summary["privacy"]["epsilon"], summary["privacy"]["releases"]) == (3, found, 3)
    assert summary["privacy"]["noise_multiplier"] == saved
    assert summary["privacy"]["kind"] == "CentralDP"
    assert any("train/" in what for what in summary["privacy"]["not_covered"])


KILL = "+callbacks.kill={_target_: tests.privacy.test_private_runs.Killing, round: 3}"


def killed_in_round_3(*common: str) -> None:
    """Begin a run in a process that is killed once the round is in the ledger, and before its checkpoint."""
    command = [sys.executable, "-m", "flrl.train", *common, KILL, "hydra.run.dir=run"]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    assert [row["round"] for row in rows("run", "privacy.jsonl")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["dp", "dp_adaptive", "dp_local", "dp_distributed", "dp_ftrl"])
def test_a_crash_between_charge_and_checkpoint_changes_no_bit_and_counts_once(cli: Any, mechanism: str) -> None:
    common = (*DP[1:], "strategy.rounds=4", f"strategy/transforms={mechanism}", RDP)
    assert cli(*common, "hydra.run.dir=whole").code == 0
    killed_in_round_3(*common)
    done = cli("resume=run", "~callbacks.kill", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert [row["round"] for row in rows("run", "privacy.jsonl")] == [1, 2, 3, 3, 4]
    assert [row["digest"] for row in rows("run")] == [row["digest"] for row in rows("whole")]
    assert spent("run") == spent("whole")
    assert cli("run=run", main=verify).code == 0


@pytest.mark.slow
def test_with_secure_noise_a_repeated_round_counts_again_and_nothing_can_be_verified(cli: Any) -> None:
    common = (*DP, "strategy.rounds=4", "privacy.secure_noise=true", RDP)
    done = cli(*common, "hydra.run.dir=whole")
    assert "note: privacy.secure_noise=true: noise is drawn from the operating system" in done.err
    killed_in_round_3(*common)
    assert cli("resume=run", "~callbacks.kill", "hydra.run.dir=run").code == 0
    assert spent("run")[-1] == epsilon(sampled_gaussian(1.0, 0.5, 5), delta=1e-5, accountant="rdp")
    assert spent("whole")[-1] == epsilon(sampled_gaussian(1.0, 0.5, 4), delta=1e-5, accountant="rdp")
    assert [row["digest"] for row in rows("run")][1:] != [row["digest"] for row in rows("whole")][1:]
    done = cli("run=run", main=verify)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: run=run: privacy.secure_noise=true: its noise came from the operating system, so that no round can be "
        "recomputed\n"
    )


@pytest.mark.slow
def test_without_a_checkpoint_too_releases_with_secure_noise_count(cli: Any) -> None:
    common = (*DP, "strategy.rounds=4", "privacy.secure_noise=true", RDP, "callbacks.checkpoint.every=9")
    killed_in_round_3(*common)
    assert cli(*common, "resume=auto", "~callbacks.kill", "hydra.run.dir=run").code == 0
    assert [row["round"] for row in rows("run", "privacy.jsonl")] == [1, 2, 3, 1, 2, 3, 4]
    assert spent("run")[-1] == epsilon(sampled_gaussian(1.0, 0.5, 7), delta=1e-5, accountant="rdp")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["buffered", "tiered", "asynchronous"])
def test_a_budget_is_kept_whoever_the_clock_chooses(cli: Any, schedule: str) -> None:
    """Whom devices choose is not known before a round, so that everybody is counted on."""
    private = ("trainer/private=dp_sgd", "privacy.epsilon=6", "strategy.sampler.num=4", "devices=heavy_tailed", RDP)
    buffer = ("strategy.schedule.buffer=2",) if schedule == "buffered" else ()
    common = (*private, f"strategy/schedule={schedule}", *buffer, "logger=none", "strategy.rounds=10")
    for seed in range(3):
        done = cli(*common, f"seed={seed}", f"hydra.run.dir=run{seed}")
        assert done.code == 0, done.err
        assert max(spent(f"run{seed}")) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["dp", "dp_adaptive", "dp_local", "dp_distributed", "dp_ftrl"])
def test_what_is_shown_is_what_the_accountant_says_and_a_resume_has_the_same_bits(cli: Any, mechanism: str) -> None:
    common = (*DP[1:], f"strategy/transforms={mechanism}")
    assert cli(*common, "strategy.rounds=4", "hydra.run.dir=whole").code == 0
    assert cli(*common, "strategy.rounds=2", "hydra.run.dir=run").code == 0
    if mechanism == "dp_ftrl":  # whose noise is for a number of rounds
        done = cli("resume=run", "strategy.rounds=4", "hydra.run.dir=run")
        assert "dp_ftrl.sensitivity=" in done.err
        return
    assert cli("resume=run", "strategy.rounds=4", "hydra.run.dir=run").code == 0
    assert [row["digest"] for row in rows("run")] == [row["digest"] for row in rows("whole")]
    assert spent("run")[-1] == spent("whole")[-1]
    first, *others, last = spent("whole")
    assert [first, *others] == sorted([first, *others])
    assert last >= others[-1] * 0.9999  # others are bounds in coarser steps
    if mechanism == "dp":
        assert spent("whole")[-1] == epsilon(sampled_gaussian(1.0, 0.5, 4), delta=1e-5)


@pytest.mark.slow
def test_the_command_that_began_a_calibrated_run_goes_on_with_it(cli: Any) -> None:
    command = (*DP, RDP, "strategy.transforms.dp.noise_multiplier=null", "privacy.epsilon=3", "hydra.run.dir=run")
    assert cli(*command, "strategy.rounds=2").code == 0
    saved = OmegaConf.load("run/.hydra/config.yaml").strategy.transforms.dp.noise_multiplier
    done = cli(*command, "strategy.rounds=3", "privacy.epsilon=9", "resume=auto")
    assert (done.code, len(spent("run"))) == (0, 3), done.err
    assert OmegaConf.load("run/.hydra/config.yaml").strategy.transforms.dp.noise_multiplier == saved


@pytest.mark.slow
def test_a_lost_ledger_is_refused_and_nothing_is_changed(cli: Any) -> None:
    assert cli(*DP, RDP, "strategy.rounds=2", "hydra.run.dir=run").code == 0
    Path("run/privacy.jsonl").unlink()
    before = Path("run/metrics.jsonl").read_bytes()
    done = cli("resume=run", "strategy.rounds=3", "hydra.run.dir=run")
    assert (done.code, Path("run/metrics.jsonl").read_bytes()) == (1, before)
    assert done.err == (
        "error: run/privacy.jsonl has nothing of round 1: without it, it is not known what has been released\n"
    )


@pytest.mark.slow
def test_a_saved_configuration_without_the_key_goes_on(cli: Any) -> None:
    assert cli("strategy.rounds=2", "logger=none", "hydra.run.dir=run").code == 0
    config = OmegaConf.load("run/.hydra/config.yaml")
    del config["privacy"]
    OmegaConf.save(config, "run/.hydra/config.yaml")
    assert cli("resume=run", "strategy.rounds=3", "hydra.run.dir=run").code == 0
    assert "privacy/epsilon" not in rows("run")[-1]
    assert not Path("run/privacy.jsonl").exists()


@pytest.mark.mpi
@pytest.mark.parametrize("mechanism", ["dp", "dp_adaptive", "dp_local", "dp_distributed", "dp_ftrl"])
def test_one_digest_on_all_backends(cli: Any, mechanism: str) -> None:
    common = (*DP[1:], f"strategy/transforms={mechanism}", "strategy=scaffold", "strategy.rounds=3", RDP)
    assert cli(*common, "hydra.run.dir=serial").code == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    mpi = [shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec")), "--oversubscribe", "-n", "3"]
    for folder, before, more in (("process", [], ["backend.workers=2"]), ("mpi", mpi, [])):
        command = [*before, sys.executable, "-m", "flrl.train", *common, f"backend={folder}", *more]
        subprocess.run([*command, f"hydra.run.dir={folder}"], env=environment, check=True)
        for name in ("digest", "privacy/epsilon"):
            assert [row.get(name) for row in rows(folder)] == [row.get(name) for row in rows("serial")]
