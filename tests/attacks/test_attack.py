"""`flrl-attack`: what it writes, and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flrl.attack import main
from flrl.attacks import Attack, Finding, Observation, Progress
from flrl.attacks.scoring import FALSE_POSITIVE_RATES
from flrl.config import CONF_DIR
from flrl.data import TensorSource
from flrl.transforms import Transform
from tests.attacks.conftest import Finished
from tests.attacks.test_replay import checksums

ATTACKS = sorted(path.stem for path in (CONF_DIR / "attack").glob("*.yaml"))


class Guess(Attack):
    """Draws samples, labels and scores, and says so."""

    knows, source, on_sums = "A dice player.", "none", True

    def __init__(self, *, size: int = 3) -> None:
        self.size = size

    def find(self, observation: Observation, progress: Progress) -> Finding:
        progress(0.5, "cosine 0.25")
        generator = torch.Generator().manual_seed(observation.seed)
        drawn = torch.rand(self.size, *observation.inputs.shape, generator=generator)
        return Finding(
            inputs=drawn,
            labels=torch.arange(self.size),
            label_counts=torch.ones(10),
            scores=torch.rand(len(observation.candidates.indices), generator=generator).double(),
            numbers={"cosine": 0.25, "not_finite": float("nan")},
            pictures={"drawn": drawn},
        )


class Hiding(Transform):
    """Stands for masks that only cancel in the sum."""

    hides_updates = True


@pytest.fixture
def guess(tmp_path: Path) -> str:
    folder = tmp_path / "my" / "attack"
    folder.mkdir(parents=True)
    (folder / "guess.yaml").write_text("_target_: tests.attacks.test_attack.Guess\nsize: 3\n")
    return f"--config-dir={folder.parent}"


def test_results_and_pictures_are_written(cli: Any, finished: Finished, guess: str) -> None:
    folder = finished("fedavg")
    client = list(checksums(folder)[1])[1]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "attacks" not in path.parts}
    done = cli(guess, f"run={folder}", "attack=guess", "round=1", f"client={client}", "seed=5", main=main)
    assert (done.code, done.err) == (0, "")
    assert "\r" not in done.out  # no bar
    here = folder / "attacks/guess"
    result = json.loads((here / "result.json").read_text())
    assert (here / f"1-{client}/result.json").read_text() == (here / "result.json").read_text()
    assert {path.name for path in here.glob("*.png")} == {"reconstruction.png", "drawn.png"}
    assert (result["attack"], result["round"], result["client"], result["seed"]) == ("guess", 1, int(client), 5)
    assert (result["threat_model"], result["paper"]) == ("A dice player.", "none")
    assert result["settings"] == {"_target_": "tests.attacks.test_attack.Guess", "size": 3}
    assert (result["cosine"], result["not_finite"]) == (0.25, None)
    assert (result["members"], result["samples"], result["reconstructed"]) == (1, 1, 3)
    assert set(result) >= {"mse", "psnr", "ssim", "label_accuracy", "auc", "seconds", "versions"}
    assert set(result) >= {f"tpr_at_fpr_{rate:g}" for rate in FALSE_POSITIVE_RATES}
    assert cli(guess, f"run={folder}", "attack=guess", "round=1", f"client={client}", "seed=5", main=main).code == 0
    again = json.loads((here / "result.json").read_text())
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    assert cli(guess, f"run={folder}", "attack=guess", main=main).code == 0
    newest = json.loads((here / "result.json").read_text())
    assert (newest["round"], newest["client"]) == (2, int(next(iter(checksums(folder)[2]))))
    assert (here / f"1-{client}/result.json").exists()
    for path, data in before.items():
        assert path.read_bytes() == data


def test_all_attacks_are_in_one_table(cli: Any, finished: Finished) -> None:
    folder = finished("fedsgd")
    only = [f"~attack.{name}" for name in ATTACKS if name not in ("analytic", "all")]
    done = cli(f"run={folder}", "attack=all", "round=1", *only, main=main)
    assert (done.code, done.err) == (0, "")
    result = json.loads((folder / "attacks/all/result.json").read_text())
    assert [*result["attacks"]] == ["analytic"]
    assert result["attacks"]["analytic"]["mse"] < 1e-8
    [row] = csv.DictReader((folder / "attacks/all/result.csv").read_text().splitlines())
    assert (row["attack"], float(row["mse"])) == ("analytic", result["attacks"]["analytic"]["mse"])
    assert (folder / "attacks/analytic/result.json").exists()


def test_an_attack_that_does_not_apply_is_refused_or_listed(cli: Any, finished: Finished) -> None:
    folder = finished("personal")
    config = (folder / ".hydra/config.yaml").read_text()
    reason = "needs a first layer that sees the inputs: net.1 takes 64 numbers, not 3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flrl.attacks.observe.gathered", lambda source, indices: three(len(indices)))
        done = cli(f"run={folder}", "attack=analytic", main=main)
        assert (done.code, done.err) == (1, f"error: attack=analytic: {reason}\n")
        only = [f"~attack.{name}" for name in ATTACKS if name not in ("analytic", "all")]
        assert cli(f"run={folder}", "attack=all", *only, main=main).code == 0
    result = json.loads((folder / "attacks/all/result.json").read_text())
    assert result["attacks"]["analytic"] == {"not_applied": reason}
    assert not (folder / "attacks/analytic").exists()
    assert (folder / ".hydra/config.yaml").read_text() == config


def three(number: int) -> TensorSource:
    return TensorSource(torch.zeros(number, 3), torch.zeros(number, dtype=torch.int64))


def test_one_attack_that_fails_does_not_lose_the_others(cli: Any, finished: Finished) -> None:
    def fails(*args: Any) -> Finding:
        raise RuntimeError("no")

    folder = finished("fedsgd")
    only = [f"~attack.{name}" for name in ATTACKS if name not in ("analytic", "label_counts", "all")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flrl.attacks.analytic.Analytic.find", fails)
        done = cli(f"run={folder}", "attack=all", "round=1", *only, main=main)
    assert (done.code, done.err) == (1, "error: attack=analytic failed: RuntimeError: no\n")
    attacks = json.loads((folder / "attacks/all/result.json").read_text())["attacks"]
    assert attacks["analytic"] == {"failed": "RuntimeError: no"}
    assert attacks["label_counts"]["label_accuracy"] == 1.0


def test_updates_that_are_hidden_are_refused_and_their_sum_is_seen(cli: Any, tmp_path: Path) -> None:
    hidden = "+strategy.transforms.mask._target_=tests.attacks.test_attack.Hiding"
    single = ("model=mlp_2nn", "partition.num_clients=700", "strategy.sampler.num=2", "strategy.rounds=1")
    assert cli(*single, hidden, "logger=none", "hydra.run.dir=run").code == 0
    done = cli("run=run", "attack=analytic", main=main)
    assert (done.code, done.err) == (
        1,
        "error: strategy.transforms.mask: hides what each client sends, only their sum is seen: client=all\n",
    )
    assert cli("run=run", "attack=analytic", "client=sum", main=main).code == 0


@pytest.mark.slow
def test_results_are_in_wandb(cli: Any, finished: Finished, guess: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    logged: list[dict[str, Any]] = []
    original, folder = wandb.Run.log, finished("fedavg")
    monkeypatch.setattr(
        wandb.Run, "log", lambda run, data, *rest, **more: (logged.append(data), original(run, data, *rest, **more))
    )
    done = cli(guess, f"run={folder}", "attack=guess", "logger=wandb_offline", main=main)
    assert done.code == 0, done.err
    [numbers] = logged
    assert {"attack/mse", "attack/auc", "attack/reconstruction", "attack/drawn"} <= set(numbers)
    assert [*(folder / "attacks/guess").glob("*/wandb/offline-run-*/*.wandb")]


def test_every_attack_is_one_of_all() -> None:
    listed = yaml.safe_load((CONF_DIR / "attack/all.yaml").read_text())["defaults"]
    assert sorted(entry.partition("@")[0] for entry in listed) == [name for name in ATTACKS if name != "all"]
    assert all(name == place for name, _, place in (entry.partition("@") for entry in listed))


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "all"])
def test_every_attack_says_what_it_knows_and_where_it_is_from(name: str) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    from flrl.cli.instantiation import make
    from flrl.config import AttackConfig

    ConfigStore.instance().store(name="attack_schema", node=AttackConfig)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        attack = make({"attack": dict(compose("attack", ["run=x", f"attack={name}"]).attack)}, "attack")
    assert isinstance(attack, Attack)
    assert len(attack.knows) > 20
    assert len(attack.source) > 10
