"""The setting of Karimireddy, He, Jaggi, ICLR 2022, arXiv 2006.09365, on MNIST: 20 honest workers and 5 others.

The training samples, sorted by class, are cut into 20 parts for the honest workers, 0 to 19. Workers 20 to 24 each have
as many samples drawn from all classes, as copies.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flrl.adversaries import LabelFlip, Mimic, SignFlip
from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import with_update
from flrl.data import Splits, TensorSource
from flrl.data.datasets import mnist
from flrl.types import ClientUpdate, Tensors

HONEST, OTHERS, MOMENTUM = 20, 5, 0.9


def copied(*, data_dir: str, mean: Sequence[float], std: Sequence[float], **given: Any) -> Splits:
    """MNIST with copies of 15,000 training samples at its end, 3,000 for each worker that may lie."""
    splits = mnist(data_dir=data_dir, mean=mean, std=std, **given)
    train = splits.train
    assert isinstance(train, TensorSource)
    count = len(train) // HONEST * OTHERS
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]
    inputs, targets = torch.cat([train.inputs, train.inputs[chosen]]), torch.cat([train.targets, train.targets[chosen]])
    return Splits(train=TensorSource(inputs, targets, mean=mean, std=std), test=splits.test)


def sorted_by_class(num_samples: int, labels: np.ndarray | None, rng: np.random.Generator, **given: Any) -> np.ndarray:
    """The honest workers' samples in the order of their classes, and the copies."""
    assert labels is not None
    whole = num_samples * HONEST // (HONEST + OTHERS)
    owner = np.empty(num_samples, np.int64)
    owner[np.argsort(labels[:whole], kind="stable")] = np.arange(whole) * HONEST // whole
    owner[whole:] = HONEST + np.arange(num_samples - whole) * OTHERS // (num_samples - whole)
    return owner


def net(*, input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """The authors' CNN: 1,199,882 parameters, without ReLU after the second convolution."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


class FreshLabelFlip(LabelFlip):
    """Label flips of workers without momentum, as in the authors' code: they send minus lr times a fresh gradient."""

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        return fresh(update, memory)


class FreshSignFlip(SignFlip):
    """Bit flips of workers without momentum."""

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        sent, kept = fresh(update, memory)
        return with_update(sent, -sent.vectors["update"]), kept


def fresh(update: ClientUpdate, memory: Tensors) -> tuple[ClientUpdate, Tensors]:
    """The update of one step without its momentum: `u(t) - 0.9 u(t - 1)`."""
    own = update.vectors["update"]
    before = memory.get("own", torch.zeros_like(own))
    return with_update(update, own - MOMENTUM * before), {"own": own.clone()}


class OneWayMimic(Mimic):
    """Copies the worker whose first gradient reaches farthest one way along the direction, as in the authors' code."""

    def collude(self, honest: Tensor, own: Tensor, state: Tensors, context: AdversaryContext) -> tuple[Tensor, Tensors]:
        if "target" not in state:
            z = torch.randn(honest.shape[1], generator=context.generator, dtype=torch.float64).to(honest)
            centred = honest - honest.mean(dim=0)
            along = -honest @ ((centred @ z) @ centred)  # an update is minus lr times a gradient
            state = {"target": torch.tensor(context.honest[int(along.argmax())])}
        return honest[list(context.honest).index(int(state["target"]))], state
