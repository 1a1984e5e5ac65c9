"""Finished runs to be attacked, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flrl.train import main

SINGLE = ("model=mlp_2nn", "partition.num_clients=1438", "strategy.rounds=2", "evaluation.every=9")
RUNS = {
    # Client memory of every kind: variates, errors of a transform, positions in the batches.
    "stateful": (
        "strategy=scaffold", "strategy/transforms=top_k", "strategy.transforms.top_k.share=0.5", "strategy.rounds=4",
        "strategy.sampler.num=4", "trainer.local_steps=3", "trainer.batch_size=50", "holdout=0.1",
    ),
    "personal": (
        "strategy=fedper", "model=mlp_2nn", "model.net.hidden=7", "strategy.personal=[net.5.*]", "strategy.rounds=2",
        "strategy.sampler.num=2", "trainer=vectorized", "trainer.width=2", "trainer.shuffle=true",
    ),
    "fedsgd": (*SINGLE, "strategy=fedsgd", "strategy.sampler.num=3"),
    "fedavg": (*SINGLE, "strategy.sampler.num=3", "model.optimizer.lr=0.05"),
}  # fmt: skip
Finished = Callable[..., Path]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`finished("fedsgd")` is the folder of that run; `finished("fedsgd", "backend=process")` of it with changes."""
    folders: dict[tuple[str, ...], Path] = {}

    def folder_of(*key: str) -> Path:
        if key not in folders:
            folder = tmp_path_factory.mktemp("finished") / "run"
            arguments = [*RUNS[key[0]], *key[1:], "logger=none", f"hydra.run.dir={folder}"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HYDRA_FULL_ERROR", "0")
                patch.setattr("sys.argv", ["flrl-train", *arguments])
                main()
            folders[key] = folder
        return folders[key]

    return folder_of
