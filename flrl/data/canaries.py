"""Sample canaries: training samples that an audit looks for in the model, each in the training data by a coin."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from flrl.data.sources import SampleCanaries, Splits, TensorSource
from flrl.seeding import SERVER, generator_for


def with_canaries(
    *, dataset: Splits, num: int, kind: Literal["mislabelled", "noise"] = "mislabelled", seed: int = 0, coin_seed: int
) -> Splits:
    """A dataset in which some training samples are canaries; test samples are as they were.

    The partition divides all samples, canaries or not, and those whose coin says "out" are then left out of what their
    client has: one coin changes one sample of one client, and nothing else.

    Args:
        dataset: the dataset, with classes, in memory.
        num: number of canaries, at most the training samples.
        kind: "mislabelled": another class, uniformly; "noise": any class, and inputs uniform between the smallest and
            the largest that the dataset has.
        seed: of which samples are canaries, and of what becomes of them.
        coin_seed: of the coins, each 1/2.

    Raises:
        ValueError: a setting is invalid, or samples are not in memory or have no classes.
    """
    train = dataset.train
    if not isinstance(train, TensorSource) or train.labels is None:
        raise ValueError("dataset.dataset: canaries need samples with a class, in memory")
    if not 1 <= num <= len(train):
        raise ValueError(f"dataset.num={num}: must be at least 1 and at most {len(train)}, the training samples")
    if kind not in ("mislabelled", "noise"):
        raise ValueError(f"dataset.kind={kind!r}: must be 'mislabelled' or 'noise'")
    rng = generator_for(seed, 0, SERVER, "canaries")
    indices = np.sort(rng.choice(len(train), num, replace=False))
    changed = train.subset(np.arange(len(train)))
    classes = dataset.num_classes or int(train.labels.max()) + 1
    if kind == "mislabelled":
        labels = (train.labels[indices] + rng.integers(1, classes, num)) % classes
    else:
        labels = rng.integers(classes, size=num)
        low, high = float(train.inputs.min()), float(train.inputs.max())
        inputs = low + (high - low) * rng.random((num, *train.inputs.shape[1:]))
        changed.inputs[indices] = torch.from_numpy(inputs).to(changed.inputs)
    changed.targets[indices] = torch.from_numpy(labels).to(changed.targets)
    changed.labels = train.labels.copy()
    changed.labels[indices] = labels
    included = generator_for(coin_seed, 0, SERVER, "canaries/coins").random(num) < 0.5
    return replace(dataset, train=changed, canaries=SampleCanaries(indices, included))
