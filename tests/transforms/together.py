"""What goes together, two rounds each, on one backend: `python -m tests.transforms.together BACKEND FILE`."""

import contextlib
import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flrl.backends.mpi import launch
from flrl.data import FederatedData, Splits
from flrl.evaluation import Evaluator
from flrl.process_setup import prepare
from flrl.rounds import initial_state
from flrl.worker import Worker
from tests.strategies.cells import MAKE, forked_workers, trained
from tests.toys import blobs, blocks
from tests.transforms.composition import CLIENTS, Deep, pairs, setup, with_dp_sgd, with_rules


@dataclass(frozen=True)
class Together:
    """The recipe of a run with two transforms, or one with a rule, or with DP-SGD.

    Attributes:
        first: a transform.
        second: another one, a rule, or "dp_sgd".
        kind: which of them: "transform", "rule" or "training".
    """

    first: str
    second: str
    kind: str

    def data(self) -> FederatedData:
        """Five samples a client, and four of the server's own."""
        partition = blocks([6] * CLIENTS)
        return FederatedData(Splits(blobs(6 * CLIENTS), blobs(20, seed=1)), partition, seed=0, root_samples=4)

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """The worker of a federation of linear classifiers."""
        names = (self.first, self.second) if self.kind == "transform" else (self.first,)
        rule = self.second if self.kind == "rule" else "mean"
        made = setup(names, rule=rule, private=self.kind == "training")
        torch.manual_seed(0)
        model = prepare(Deep(), threads=threads, device=device)
        return Worker(model, data, made.trainer, made.strategy, Evaluator(batch_size=20), 0)


def cells() -> list[Together]:
    """All that go together."""
    kinds = {"transform": pairs(), "rule": with_rules(), "training": with_dp_sgd()}
    return [Together(*pair, kind) for kind, found in kinds.items() for pair, why in found.items() if why is None]


def run(recipe: Together, backend: Any) -> list[list[str]]:
    """What is noted of a run's rounds: digests, numbers, and what clients sent."""
    worker = recipe.worker(backend.share(recipe.data()), threads=1, device="cpu")
    state = initial_state(worker.strategy, worker.model.vector.clone(), worker.model.layout, worker.seed)
    noted, _ = trained(recipe, backend, worker, state)  # type: ignore[arg-type]
    return noted.rounds


def main(name: str, output: Path) -> None:
    """Run all cells, and write what was noted by cell."""
    torch.set_num_threads(1)
    if name == "mpi":
        launch.prepare("flrl.backends.MpiBackend")
    noted: dict[str, Any] = {}
    for recipe in cells():
        try:
            with forked_workers() if name == "process" else contextlib.nullcontext():
                found: Any = run(recipe, MAKE[name]())
        except Exception:
            found = traceback.format_exc()
        noted[f"{recipe.first} with {recipe.second}"] = found
    output.write_text(json.dumps(noted))


if __name__ == "__main__":
    from tests.transforms import together as this  # a recipe can be sent to processes that import it by this name

    launch.run_under_mpi(lambda: this.main(sys.argv[1], Path(sys.argv[2])))
