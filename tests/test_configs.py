"""Every yaml composes and instantiates; every experiment runs, shrunk; the conf tree keeps its rules."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import OmegaConf

import flrl.app
from flrl.config import CONF_DIR, TrainConfig

ConfigStore.instance().store(name="train_schema", node=TrainConfig)
OmegaConf.register_new_resolver("flrl_run_dir", flrl.app._run_dir, replace=True)

YAMLS = sorted(CONF_DIR.rglob("*.yaml"))
GROUPS = {"strategy", "model", "dataset", "partition", "trainer", "backend", "callbacks", "logger", "paths", "hydra"}
NEEDS_FILES = {"mnist", "fashion_mnist"}
GLOBAL = {"experiment", "debug", "hparams_search"}
relative = [path.relative_to(CONF_DIR) for path in YAMLS]


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=["paths.output_dir=/tmp/unused", *overrides])


@pytest.mark.parametrize(
    "path", [p for p in relative if len(p.parts) == 2 and p.parts[0] in GROUPS - {"hydra"}], ids=str
)
def test_every_choice_composes_and_instantiates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    group, choice = path.parts[0], path.stem
    node = OmegaConf.to_container(composed(f"{group}={choice}"), resolve=True)[group]
    if choice not in NEEDS_FILES:
        made = instantiate(node, _convert_="all")
        assert made is not None
        assert OmegaConf.to_container(OmegaConf.create(node)) == node


@pytest.mark.parametrize("path", [p for p in relative if len(p.parts) == 3 and p.parts[0] != "hydra"], ids=str)
def test_every_nested_choice_composes_and_instantiates(path: Path) -> None:
    group, part = path.parts[:2]
    config = composed(f"{group}/{part}={path.stem}", *(["dataset=mnist"] if part == "net" else []))
    expected = yaml.safe_load((CONF_DIR / path).read_text())["_target_"]
    assert config[group][part]["_target_"] == expected
    made = instantiate(OmegaConf.to_container(config[group], resolve=True)[part], _convert_="all")
    assert made is not None


@pytest.mark.parametrize("name", [p.stem for p in relative if p.parts[0] == "experiment"])
@pytest.mark.parametrize("debug", ["", "+debug=default"])
def test_every_experiment_runs_shrunk(cli: Any, name: str, debug: str) -> None:
    shrunk = [
        f"+experiment={name}", *([debug] if debug else []), "dataset=digits", "strategy.rounds=1", "logger=none",
        "hydra.run.dir=run",
    ]  # fmt: skip
    done = cli(*shrunk)
    assert done.code == 0, done.err
    assert Path("run/model.safetensors").exists()


def test_the_main_experiment_is_the_published_setting() -> None:
    config = OmegaConf.to_container(composed("+experiment=mnist_fedavg"), resolve=True)
    assert config["dataset"]["mean"] == [0.1307]
    assert config["dataset"]["std"] == [0.3081]
    assert config["partition"]["_target_"] == "flrl.data.partitions.iid"
    assert config["partition"]["num_clients"] == 2
    assert config["model"]["net"]["_target_"] == "flrl.models.nets.softmax_regression"
    assert config["model"]["optimizer"] == {
        "_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.001, "momentum": 0.0, "weight_decay": 0.0
    }  # fmt: skip
    assert {k: config["trainer"][k] for k in ("batch_size", "local_epochs", "shuffle")} == {
        "batch_size": 64, "local_epochs": 1, "shuffle": False
    }  # fmt: skip
    assert (config["strategy"]["rounds"], config["seed"], config["evaluation"]["every"]) == (5, 0, 1)
    assert config["strategy"]["server_optimizer"]["lr"] == 1.0


def test_the_tree_keeps_its_rules() -> None:
    assert {path.parts[0] for path in relative if len(path.parts) > 1} == GROUPS | {"experiment", "debug"}
    for path in YAMLS:
        text, group = path.read_text(), path.relative_to(CONF_DIR).parts[0]
        assert ("# @package _global_" in text) == (group in GLOBAL), path
        if group == "experiment":
            assert "python -m flrl.train +experiment=" in text
            assert "Expected" in text
    defaults = yaml.safe_load((CONF_DIR / "train.yaml").read_text())["defaults"]
    assert defaults[:2] == ["train_schema", "_self_"]
    assert not any(isinstance(entry, dict) and "experiment" in entry for entry in defaults)


def test_yamls_list_their_constructors_arguments_in_order() -> None:
    import inspect

    from hydra.utils import get_object

    for path in YAMLS:
        node = yaml.safe_load(path.read_text()) or {}
        target = node.get("_target_", "")
        if not target.startswith("flrl."):
            continue
        named = list(inspect.signature(get_object(target)).parameters)
        given = [key for key in node if key in named]
        assert given == sorted(given, key=named.index), path
