"""Fixtures of the whole suite, and the command line run in this process."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import absl.logging
import pytest
import torch

# Hydra closes all handlers, and absl's, which comes with dp-accounting, closes its stream unless it is this one.
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
torch.set_num_threads(1)


@dataclass(frozen=True)
class Finished:
    """How a command line ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _quiet_root() -> Iterator[None]:
    """Each test begins with the root logger's level of a fresh process: Hydra sets it to INFO for good."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    yield
    root.setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _files_of_a_dataset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test with a parameter `path` that is a choice of conf/dataset/ has the files that it reads, tiny, in data/."""
    path = request.node.callspec.params.get("path") if hasattr(request.node, "callspec") else None
    if isinstance(path, Path) and path.parent.name == "dataset":
        from tests.tiny_files import WRITERS

        if path.stem in WRITERS:
            folder: Path = request.getfixturevalue("tmp_path")
            monkeypatch.chdir(folder)
            WRITERS[path.stem](folder / "data", monkeypatch)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Finished]]:
    """`cli("seed=1", ...)` runs `flrl-train` in this process, in a temporary working directory."""
    from flrl.train import main as train_main

    # Hydra composes everything once more, only to read `hydra.mode`, which no configuration here sets.
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *args, **kwargs: None)
    # A tenth of a second in each run, whose picture one test looks at.
    monkeypatch.setattr("flrl.data.pictures.save_partition", lambda data, path: None)
    root = logging.getLogger()
    handlers = list(root.handlers)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str, main: Callable[[], None] = train_main) -> Finished:
        monkeypatch.setattr(sys, "argv", ["flrl-train", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Finished(code, *capfd.readouterr())

    yield run
    for handler in [handler for handler in root.handlers if handler not in handlers]:  # the log files of runs
        root.removeHandler(handler)
        handler.close()
