"""A small federation of images, and adversaries that tests share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flrl.adversaries import (
    ALIE,
    DBA,
    IPM,
    MAPF,
    Adversary,
    Backdoor,
    ClientCanaries,
    FangKrum,
    FangTrimmedMean,
    FreeRider,
    Gaussian,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    ModelReplacement,
    SignFlip,
    Threat,
    Zero,
)
from flrl.aggregation import Median
from flrl.data import DatasetSource, FederatedData, Splits, TensorSource
from flrl.evaluation import Evaluator
from flrl.process_setup import prepare
from flrl.sampling import AllClients
from flrl.setup import Setup
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer, Trainer
from flrl.worker import Worker
from tests.toys import Linear, blobs, blocks

SIZES = (6, 9, 12, 8, 5)
IMAGE = {"input_shape": [1, 6, 6], "num_classes": 3}


class Pictures(Linear):
    """A linear classifier of images of 6 x 6 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def images(num_samples: int, seed: int = 7) -> TensorSource:
    flat = blobs(num_samples, features=36, seed=seed)
    return TensorSource(flat.inputs.view(-1, 1, 6, 6), flat.targets)


class Pairs(torch.utils.data.Dataset[Any]):
    """The samples of a `TensorSource`, one by one."""

    def __init__(self, source: TensorSource) -> None:
        self.source, self.targets = source, source.targets.tolist()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.source.inputs[index], self.targets[index]


@dataclass(frozen=True)
class Kind:
    """An adversary.

    Attributes:
        make: makes it, given `clients`.
        data: whether it poisons samples.
        rows: whether it sees rows.
    """

    make: Callable[..., Adversary]
    data: bool = False
    rows: bool = False


KINDS = {
    "label flip, all": Kind(partial(LabelFlip, num_classes=3), data=True),
    "label flip, pairwise": Kind(partial(LabelFlip, mode="pairwise", num_classes=3), data=True),
    "label flip, targeted": Kind(partial(LabelFlip, mode="targeted", source=1, target=0, num_classes=3), data=True),
    "label flip, at random": Kind(partial(LabelFlip, mode="targeted", source=[0, 1], num_classes=3), data=True),
    "backdoor, pattern": Kind(partial(Backdoor, size=2, **IMAGE), data=True),
    "backdoor, blended": Kind(partial(Backdoor, kind="blended", **IMAGE), data=True),
    "backdoor, semantic": Kind(
        partial(Backdoor, kind="semantic", indices=range(0, 40, 2), test_indices=[1, 2], target=1, **IMAGE), data=True
    ),
    "dba": Kind(partial(DBA, size=2, **IMAGE), data=True),
    "sign flip": Kind(SignFlip),
    "model replacement": Kind(partial(ModelReplacement, data=Backdoor(size=2, **IMAGE)), data=True),
    "gaussian": Kind(Gaussian),
    "zero": Kind(Zero),
    "client canaries": Kind(ClientCanaries),
    "free rider, noise": Kind(partial(FreeRider, kind="noise")),
    "free rider, delta": Kind(FreeRider),
    "alie": Kind(partial(ALIE, tau=1.5), rows=True),
    "ipm": Kind(IPM, rows=True),
    "min-max": Kind(MinMax, rows=True),
    "min-sum": Kind(MinSum, rows=True),
    "mimic": Kind(partial(Mimic, warmup=2), rows=True),
    "fang, krum": Kind(FangKrum, rows=True),
    "fang, trimmed mean": Kind(FangTrimmedMean, rows=True),
    "mapf": Kind(MAPF),
    "mapf, history": Kind(partial(MAPF, kind="history")),
    "mapf, random": Kind(partial(MAPF, kind="random")),
}


def federation(
    adversary: Adversary | None = None,
    *,
    rounds: int = 2,
    trainer: Trainer | None = None,
    sizes: Sequence[int] = SIZES,
    dataset: bool = False,
    aggregator: Any = None,
    module: Any = None,
    evaluator: Evaluator | None = None,
    **options: Any,
) -> Worker:
    """A worker of a federation that an adversary threatens; its rule is the median."""
    train: Any = images(sum(sizes))
    strategy = FedAvg(
        rounds=rounds,
        sampler=AllClients(),
        server_optimizer=partial(torch.optim.SGD, lr=1.0),
        aggregator=Median() if aggregator is None else aggregator,
        **options,
    )
    source = DatasetSource(Pairs(train)) if dataset else train
    data = FederatedData(Splits(source, images(30, seed=8)), blocks(sizes), seed=0)
    torch.manual_seed(0)
    module = Pictures() if module is None else module
    trainer = EagerTrainer(batch_size=4) if trainer is None else trainer
    model = prepare(module, threads=1, device="cpu")
    adversary = Adversary() if adversary is None else adversary
    Setup.of(module, strategy, trainer, data.sizes, adversary=adversary).check()
    threat = Threat.of(adversary, len(sizes), 0, data.splits.test)
    return Worker(model, data, trainer, strategy, evaluator or Evaluator(batch_size=50), 0, threat=threat)


def without_probes(worker: Worker) -> Worker:
    """The same worker with nothing to evaluate besides the test set."""
    return replace(worker, threat=replace(worker.threat, probes=()))
