"""Runs whose client memory lies on disk: the same bits, and only the files that somebody needs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from flrl.runs.checkpoint import list_checkpoints, load_checkpoint

RUN = ("strategy=scaffold", "strategy.rounds=4", "strategy.sampler.num=3", "logger=none")
ON_DISK = "client_store.budget_bytes=0"


def digest(folder: str) -> str:
    return str(json.loads((Path(folder) / "summary.json").read_text())["digest"])


def test_a_run_on_disk_has_the_digest_of_one_in_ram(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=ram").code == 0
    assert cli(*RUN, ON_DISK, "callbacks=none", "hydra.run.dir=disk").code == 0
    assert digest("disk") == digest("ram")
    assert not Path("disk/clients").exists()  # no checkpoint needs it
    named = {
        segment[0]
        for path in Path("ram/checkpoints").glob("round-*")
        for segment in json.loads((path / "state.json").read_text())["memory"]["segments"]
    }
    assert set(os.listdir("ram/clients")) == named
    # Elsewhere, with another budget, and afterwards without the folder that it started from.
    shutil.rmtree("ram/checkpoints/round-00004")
    assert cli(*RUN, ON_DISK, "resume=ram", "hydra.run.dir=on").code == 0
    shutil.rmtree("ram")
    assert digest("on") == digest("disk")
    memory = load_checkpoint(list_checkpoints(Path("on"))[-1], {}).memory
    assert all(torch.isfinite(own["control"]).all() for own in memory.values())
