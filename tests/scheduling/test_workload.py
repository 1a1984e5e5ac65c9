"""What clients are charged on the virtual clock, beside the samples that they are trained on."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flrl.adversaries import Threat
from flrl.devices import Devices, Fleet, Work
from flrl.scheduling import Planning, Tiered
from flrl.strategies import APFL, FedAvg, FedMD, FedRep, PerFedAvg, PFedMe
from flrl.trainers import EagerTrainer
from flrl.types import ServerState
from tests.strategies.test_common import SGD, STRATEGIES, make_worker, strategy
from tests.toys import fit

SIZES = (20, 30, 40)
EXCEPTIONS = {"apfl", "fedala", "ifca", "centralized"}
"""Those of docs/time.md, and the one without clients' devices."""
MORE: dict[str, Any] = {
    "pfedme-9": partial(PFedMe, lam=1.0, lr=0.5, inner_steps=9, server_optimizer=SGD),
    "fedrep-10": partial(FedRep, head_epochs=10, personal=["net*bias"], server_optimizer=SGD),
    "fedrep-as-body": partial(FedRep, personal=["net*bias"], server_optimizer=SGD),
    "fedrep-no-head": partial(FedRep, head_epochs=10, server_optimizer=SGD),
    "perfedavg-hf": partial(PerFedAvg, beta=0.2, hessian_free=True, server_optimizer=SGD),
    "fedmd-private": partial(
        FedMD, public_samples=12, num_classes=3, transfer_epochs=3, digest_epochs=5, private_samples=10
    ),
    "apfl-1": partial(APFL, alpha=1.0, server_optimizer=SGD),
}
OFTEN = (
    "scaffold-1",
    "mime",
    "fedlin",
    "mimelite",
    "fedsam",
    "fedgems",
    "dsfl",
    "fedmd-private",
    "fedrep-10",
    "fedsgd",
)
PAIRS = [
    pytest.param(
        name, settings, id=f"{name}-{key}", marks=() if name in OFTEN and key == "epochs" else pytest.mark.slow
    )
    for name in sorted({*STRATEGIES, *MORE} - EXCEPTIONS)
    for key, settings in {"epochs": {"local_epochs": 3}, "steps": {"local_steps": 6}}.items()
]


class Counting(EagerTrainer):
    """Counts, of each round and client, the samples that are trained on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counted: Counter[tuple[int, int]] = Counter()

    def fit_batch(self, problems: Any, hooks: Any) -> Any:
        for problem in problems:
            if problem.only_gradient:  # without trainable parameters there is a loss alone
                samples = 0 if problem.trainable == frozenset() else len(problem.indices)
            else:
                epochs = range(self.num_epochs(problem))
                samples = sum(count for epoch in epochs for _, count in self.batches(problem, epoch))
                samples *= 1 + isinstance(hooks, TWICE)
            self.counted[problem.task.round, problem.task.client_id] += samples
        return super().fit_batch(problems, hooks)


TWICE = (STRATEGIES["mime"].func, STRATEGIES["fedsam"].func)  # two gradients of each batch


@pytest.mark.parametrize(("name", "settings"), PAIRS)
def test_clients_are_charged_what_they_are_trained_on(name: str, settings: dict[str, int]) -> None:
    """With a sample a second, a round takes as many seconds as the client trains samples that trains most."""
    made = strategy((STRATEGIES | MORE)[name], rounds=4)
    trainer = Counting(batch_size=8, **settings)
    worker = make_worker(made, trainer=trainer, sizes=SIZES)
    work = Work(8, trainer.local_epochs, trainer.local_steps, passes=made.passes, gradients=made.gradients)
    _, history = fit(replace(worker, fleet=Fleet(Devices(samples_per_s=1.0), work, 0)))
    times = [record.metrics["time/virtual_s"] for record in history if record.round]
    most = [max(trainer.counted[round, client] for client in range(len(SIZES))) for round in range(1, 5)]
    assert np.diff([0.0, *times]).tolist() == pytest.approx(most)


class Longer(FedAvg):
    """Says so where it trains longer, in a wrong form."""

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Any) -> np.ndarray:
        return np.full(len(sizes) - 1, np.nan)


def test_a_wrong_number_of_samples_is_refused() -> None:
    worker = make_worker(strategy(partial(Longer, server_optimizer=SGD)), sizes=SIZES)
    with pytest.raises(ValueError, match=r"Longer\.client_samples must return a finite number, at least 0, for each"):
        fit(replace(worker, fleet=Fleet(Devices(samples_per_s=1.0), Work(8), 0)))


def test_tiers_are_by_what_clients_train_in_a_usual_round() -> None:
    """With 900 samples of a digest for each, who has twice the samples is not much slower, and the link decides."""
    made = strategy(partial(FedMD, public_samples=900, num_classes=3, digest_epochs=1), schedule=Tiered(tiers=3))

    class Linked(Devices):
        def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Any:
            return replace(super().table(sizes, rng), samples_per_s=np.array([1.0, 1.1, 1.2]))

    worker = make_worker(made, sizes=SIZES)
    state = ServerState(round=0, vector=torch.zeros(1))
    fleet = Fleet(Linked(), Work(8), 0)
    planning = Planning(made, Threat(), state, np.array(SIZES), 0, worker.model.layout, fleet)
    assert made.schedule.of_clients(planning).tolist() == [2, 1, 0]  # 920, 845 and 783 s; of their own 20, 27 and 33 s
