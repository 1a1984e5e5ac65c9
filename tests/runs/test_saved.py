"""Configurations that earlier versions saved are read as this one would have written them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flrl.errors import DamagedError
from flrl.evaluate import main as evaluate
from flrl.runs.saved import BEFORE, migrated, read_config, saved_in
from flrl.verify import main as verify

OLD = Path(__file__).with_name("before_facts.yaml")


def test_an_old_configuration_is_migrated() -> None:
    old = yaml.safe_load(OLD.read_text())
    new = read_config(OLD)
    assert new["dataset"] == {"_target_": "flrl.data.datasets.digits"}
    assert new["strategy"] == {**old["strategy"], "transforms": {}}
    assert {**new, "dataset": old["dataset"], "strategy": old["strategy"]} == old
    assert migrated(new) == new


@pytest.mark.parametrize("target", ["flrl.data.datasets.synthetic_classification", "mine.data"])
def test_datasets_that_are_made_with_them_keep_them(target: str) -> None:
    config = {"dataset": {"_target_": target, "input_shape": [20], "num_classes": 5}}
    assert migrated(config) == config


def test_a_run_with_an_old_configuration_is_evaluated_verified_and_resumed(cli: Any) -> None:
    assert cli("strategy.rounds=2", "logger=none", "hydra.run.dir=run").code == 0
    Path("run/.hydra/config.yaml").write_text(OLD.read_text())
    for main in (evaluate, verify):
        done = cli("run=run", main=main)
        assert (done.code, done.err) == (0, "")
    done = cli("resume=run", "strategy.rounds=3")
    assert (done.code, done.err) == (0, "")
    saved = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert "num_classes" not in saved["dataset"]
    assert saved["logger"]["csv"]["save_dir"] == str(Path("run").resolve())


def test_what_an_interrupted_command_has_set_aside_comes_first(tmp_path: Path) -> None:
    assert saved_in(tmp_path) is None
    for name in (".hydra", BEFORE):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 1")
        assert saved_in(tmp_path) == tmp_path / name / "config.yaml"


@pytest.mark.parametrize("text", ["name: [", "name: a"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DamagedError):
        read_config(tmp_path / "config.yaml")
