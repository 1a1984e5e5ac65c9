"""Installed packages add yamls to the conf tree by the entry-point group `flrl.conf`."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from rich.console import Console

from flrl.cli.app import InstalledConfigs, register_resolvers
from flrl.cli.installed import installed_dirs
from flrl.cli.keys import composed
from flrl.info import info

STRATEGY = "# Of the lab.\ndefaults:\n  - fedavg\n  - _self_\n_target_: lab_of_tests.Half\nrounds: 3\n"
MODULE = """
from flrl.strategies import FedAvg

class Half(FedAvg):
    def adjust_gradient(self, gradient, parameters, values):
        gradient.mul_(0.5)
"""


def install(folder: Path, value: str) -> None:
    """What pip leaves of a package that has an entry point."""
    (folder / "lab_of_tests" / "conf" / "strategy").mkdir(parents=True)
    (folder / "lab_of_tests" / "__init__.py").write_text(MODULE)
    (folder / "lab_of_tests" / "conf" / "strategy" / "half.yaml").write_text(STRATEGY)
    dist = folder / "lab_of_tests-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-of-tests\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text(f"[flrl.conf]\nlab = {value}\n")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path / "site", "lab_of_tests.conf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def test_its_choices_are_chosen_like_any_other(cli: Callable[..., Any], lab: Path) -> None:
    done = cli("strategy=half", "callbacks=none", "logger=none", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3
    assert "_target_: lab_of_tests.Half" in Path("run/.hydra/config.yaml").read_text()


def test_they_are_listed_and_known(lab: Path) -> None:
    text = io.StringIO()
    info(["strategy=half"], Console(file=text))
    assert text.getvalue().startswith("strategy=half\nOf the lab.\n")
    register_resolvers()
    help_text = OmegaConf.create({"groups": "${flrl_groups:}"}).groups
    assert " half," in help_text.partition("  strategy ")[2].partition("  strategy/aggregator ")[0]
    Plugins.instance().register(InstalledConfigs)
    assert composed("train", ["strategy=half"])["strategy"]["rounds"] == 3  # where similar keys are looked for


def test_without_such_packages_there_is_nothing() -> None:
    assert installed_dirs() == []


@pytest.mark.parametrize("value", ["lab_of_tests.config", "no_such_package.conf", "lab_of_tests.conf.strategy.half"])
def test_a_folder_that_is_not_there(value: str, tmp_path: Path, cli: Callable[..., Any], monkeypatch: Any) -> None:
    install(tmp_path / "site", value)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    done = cli("strategy.rounds=1")
    assert done.code == 1
    assert done.err == f"error: lab-of-tests: its entry point lab={value} of flrl.conf is no folder of a package\n"
