"""Every yaml composes and instantiates; every experiment runs, shrunk; the conf tree keeps its rules."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import OmegaConf

from flrl.cli.app import register_resolvers
from flrl.cli.from_data import filled
from flrl.cli.groups import BASE, defaults_of, groups
from flrl.config import CONF_DIR, TrainConfig
from flrl.data import Splits, TensorSource

ConfigStore.instance().store(name="train_schema", node=TrainConfig)
register_resolvers()

YAMLS = sorted(CONF_DIR.rglob("*.yaml"))
GROUPS = {"strategy", "model", "dataset", "partition", "trainer", "backend", "evaluation", "callbacks", "logger"}
GROUPS |= {"paths", "hydra", "adversary", "devices"}
NEEDS_FILES = {"mnist", "fashion_mnist"}
GLOBAL = {"experiment", "debug", "hparams_search"}
relative = [path.relative_to(CONF_DIR) for path in YAMLS]
EXPERIMENTS = [p.relative_to("experiment").with_suffix("").as_posix() for p in relative if p.parts[0] == "experiment"]


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=["paths.output_dir=/tmp/unused", *overrides])


def resolved(config: Any) -> dict[str, Any]:
    """A configuration with the facts of a dataset of images."""
    source = TensorSource(torch.zeros(2, 1, 28, 28), torch.tensor([0, 9]))
    return filled(OmegaConf.to_container(config, resolve=True), Splits(source, source))


@pytest.mark.parametrize(
    "path", [p for p in relative if len(p.parts) == 2 and p.parts[0] in GROUPS - {"hydra"}], ids=str
)
def test_every_choice_composes_and_instantiates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    group, choice = path.parts[0], path.stem
    node = resolved(composed(f"{group}={choice}"))[group]
    if choice not in NEEDS_FILES:
        made = instantiate(node, _convert_="all")
        assert made is not None
        assert OmegaConf.to_container(OmegaConf.create(node)) == node


@pytest.mark.parametrize(
    "path", [p for p in relative if len(p.parts) == 3 and p.parts[0] in GROUPS - {"hydra"}], ids=str
)
def test_every_nested_choice_composes_and_instantiates(path: Path) -> None:
    group, part = path.parts[:2]
    # The default of these has nothing nested.
    parent = {"adversary": ["adversary=model_replacement"], "devices": ["devices=equal"]}.get(group, [])
    config = resolved(composed(*parent, f"{group}/{part}={path.stem}"))
    node = yaml.safe_load((CONF_DIR / path).read_text())
    if part == "transforms":  # by name: the file of one holds that one
        assert list(config[group][part]) == ([] if path.stem == "none" else [path.stem])
    else:
        assert config[group][part]["_target_"] == node["_target_"]
    made = instantiate(config[group][part], _convert_="all")
    assert made is not None


@pytest.mark.parametrize(
    ("debug", "name"),
    [pytest.param((), name, id=name) for name in EXPERIMENTS]
    + [
        pytest.param(("+debug=default",), name, id=f"{name}-debug", marks=[pytest.mark.slow] * (name != "mnist_fedavg"))
        for name in EXPERIMENTS
    ],
)
def test_every_experiment_runs_shrunk(cli: Any, debug: tuple[str, ...], name: str) -> None:
    natural = composed(f"+experiment={name}").partition._target_ == "flrl.data.partitions.natural"
    dataset = () if natural else ("dataset=digits",)  # the digits have no clients of their own
    shrunk = (*dataset, "strategy.rounds=1", "logger=none", "hydra.run.dir=run")
    done = cli(f"+experiment={name}", *debug, *shrunk)
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
    beside = {"experiment", "debug", "attack", "hparams_search", BASE}
    assert {path.parts[0] for path in relative if len(path.parts) > 1} == GROUPS | beside
    for path in YAMLS:
        text, group = path.read_text(), path.relative_to(CONF_DIR).parts[0]
        assert ("# @package _global_" in text) == (group in GLOBAL), path
        if group == "experiment":
            assert re.search(r"python -m flrl.train (-m )?\+experiment=", text)
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


def test_no_key_is_repeated_by_all_of_a_group() -> None:
    for group in GROUPS - {"hydra", "paths", "callbacks", "logger"}:
        yamls = [yaml.safe_load(p.read_text()) for p in sorted((CONF_DIR / group).glob("*.yaml"))]
        assert len(yamls) == 1 or set.intersection(*(set(node) for node in yamls)) <= {"defaults", "_target_"}, group


def test_what_choices_have_in_common_is_no_choice() -> None:
    for path in sorted((CONF_DIR / BASE).glob("*.yaml")):
        assert "_target_" not in yaml.safe_load(path.read_text()) or path.stem == "classifier"
    assert BASE not in {line.split()[0] for line in groups().splitlines()}
    included = {e for p in YAMLS for e in defaults_of(p) if isinstance(e, str) and e.startswith(f"/{BASE}/")}
    assert {e.partition("@")[0].rpartition("/")[2] for e in included} == {p.stem for p in (CONF_DIR / BASE).iterdir()}


OTHERS = (
    "  - dataset: synthetic_classification", "  - partition: shards", "  - model: mlp_2nn", "  - trainer: eager",
    "  - strategy: fedadam", "  - adversary: sign_flip", "  - evaluation: every_10",
)  # fmt: skip
OTHER_VALUES = {
    "train.yaml": {"seed: 0": "seed: 7", "holdout: 0.0": "holdout: 0.5"},
    "base/trainer.yaml": {
        "local_epochs: 1": "local_epochs: 3", "batch_size: 32": "batch_size: 8", "shuffle: false": "shuffle: true",
        "lr_decay: 1.0": "lr_decay: 0.5", "val: null": "val: 0.1", "algorithm: norm": "algorithm: value",
        "32-true": "bf16-mixed",
    },
    "base/partition.yaml": {"num_clients: 10": "num_clients: 30", "min_samples: 1": "min_samples: 4"},
    "base/classifier.yaml": {"scheduler: null": "scheduler: {_target_: builtins.int}"},
    "trainer/eager.yaml": {"optimizer_state: false": "optimizer_state: true"},
    "trainer/traced.yaml": {"fuse: false": "fuse: true", "compile: false": "compile: true"},
    "dataset/mnist.yaml": {"0.1307": "0.5", "0.3081": "0.5"},
    "model/optimizer/sgd.yaml": {"lr: 0.1": "lr: 0.5", "momentum: 0.0": "momentum: 0.9", "decay: 0.0": "decay: 0.1"},
    "strategy/fedavg.yaml": {"rounds: 10": "rounds: 99", "min_clients: 1": "min_clients: 2", "average #": "frozen #"},
    "strategy/sampler/uniform.yaml": {"num: null": "num: 1", "fraction: null": "fraction: 0.5"},
    "evaluation/default.yaml": {"every: 1": "every: 3"},
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_does_not_follow_a_change_of_a_default(name: str, tmp_path: Path) -> None:
    def result_of(conf: Path) -> dict[str, Any]:
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = compose("train", [f"+experiment={name}", "paths.output_dir=/tmp/unused"])
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]

    conf = tmp_path / "conf"
    shutil.copytree(CONF_DIR, conf)
    for other in OTHERS:
        train, (group, _) = (conf / "train.yaml").read_text(), other.split(": ")
        changed = re.sub(rf"^{group}: .*$", other, train, flags=re.MULTILINE)
        assert changed != train
        (conf / "train.yaml").write_text(changed)
    for path, values in OTHER_VALUES.items():
        for was, new in values.items():
            text = (conf / path).read_text()
            assert was in text, (path, was)
            (conf / path).write_text(text.replace(was, new, 1))
    expected, found = result_of(CONF_DIR), result_of(conf)
    assert [key for key in expected if found[key] != expected[key]] == []


@pytest.mark.parametrize("arguments", [
    ("+debug=default", "strategy/sampler=all"), ("debug=default", "strategy/sampler=uniform"),
    ("experiment=mnist_fedavg", "strategy/sampler=all"), ("experiment=mnist_fedavg", "debug=default", "trainer=eager"),
    ("experiment=mnist_fedavg", "model/optimizer=adam", "trainer=vectorized", "strategy=fedadam"),
])  # fmt: skip
def test_other_choices_go_with_experiments_and_debug(cli: Any, arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, "dataset=digits", "strategy.rounds=1", "logger=none", "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    sampler = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())["strategy"]["sampler"]
    assert (sampler["_target_"] == "flrl.sampling.AllClients") == ("strategy/sampler=all" in arguments)
    assert sampler.get("num") == (2 if "debug=default" in arguments else None)


def test_a_mistake_in_an_experiment_is_an_error(cli: Any) -> None:
    Path("my/experiment").mkdir(parents=True)
    Path("my/experiment/mine.yaml").write_text("# @package _global_\nstrategy:\n  option: 1\n")
    done = cli("--config-dir=my", "experiment=mine")
    assert done.err == "error: strategy.option=1: FedAvg takes no 'option'; strategy=scaffold does\n"
    assert cli("--config-dir=my", "experiment=mine", "strategy=fedsgd", "strategy.rounds=1").code == 0


def test_experiments_are_swept_over_without_a_plus(cli: Any) -> None:
    Path("my/experiment").mkdir(parents=True)
    for name in ("a", "b"):
        Path(f"my/experiment/{name}.yaml").write_text(f"# @package _global_\nname: {name}\nstrategy:\n  rounds: 1\n")
    done = cli("--config-dir=my", "-m", "experiment=a,b", "debug=default", "logger=none", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert "strategy" in Path("sweep/1/.hydra/config.yaml").read_text()


def test_callbacks_and_loggers_compose(cli: Any) -> None:
    Path("my/callbacks").mkdir(parents=True)
    Path("my/callbacks/mine.yaml").write_text("mine:\n  _target_: flrl.callbacks.NanGuard\n  monitor: [train/loss]\n")
    several = composed("callbacks=[default,early_stopping]", "logger=[csv,wandb_offline]", "~callbacks.progress")
    assert [*several.callbacks] == ["checkpoint", "nan_guard", "report", "early_stopping"]
    assert [*several.logger] == ["csv", "wandb"]
    assert [*composed("callbacks=none", "logger=many").logger] == ["csv", "tensorboard", "wandb"]
    done = cli("--config-dir=my", "callbacks=[default,mine]", "strategy.rounds=1", "logger=none", "hydra.run.dir=run")
    assert done.code == 0, done.err
    saved = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert [*saved["callbacks"]] == ["progress", "checkpoint", "nan_guard", "report", "mine"]


def test_evaluation_is_a_group_of_ordinary_keys() -> None:
    assert composed("evaluation=every_10").evaluation.every == 10
    assert composed("evaluation=clients", "evaluation.every=5").evaluation.every == 5
    assert composed("evaluation=clients").evaluation.clients_every == 1
