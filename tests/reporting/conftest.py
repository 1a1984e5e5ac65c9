"""A finished run and a finished sweep, whose names and tags are as bad as they can be."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flrl.report import main as report
from flrl.train import main as train

BAD = "</script><script>document.title='hacked'</script><img src=x onerror=document.title='hacked'>"
RUN = [
    'name="a<b>&c"', f"tags=[\"{BAD}\"]", "strategy.rounds=4", "partition=dirichlet", "partition.num_clients=6",
    "log_clients=true", "holdout=0.3", "evaluation.clients_every=1", "adversary=sign_flip", "adversary.clients=1",
    "strategy/aggregator=krum", "strategy.aggregator.num_malicious=1", "strategy/transforms=clip_norm", "logger=none",
]  # fmt: skip


@contextmanager
def command_line(*arguments: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr("sys.argv", ["flrl", *arguments])
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    with command_line(*RUN, f"hydra.run.dir={folder}"):
        train()
    return folder


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "sweep"
    with command_line("-m", "strategy=fedavg,fedprox,centralized", "strategy.rounds=3", "logger=none",
                      "callbacks=report", f"hydra.sweep.dir={folder}"):  # fmt: skip
        train()
    (folder / "1" / "report.html").unlink()
    with command_line(f"sweep={folder}"):
        report()
    return folder


def data_of(page: Path) -> Any:
    """What the page's script draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    return json.loads(found[1])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
