"""What strategies have in common whose clients exchange predictions on public samples."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.aggregation import Mean
from flrl.data.retargeted import retargeted
from flrl.setup import Setup
from flrl.trainers import LocalProblem, Trained
from flrl.trainers.predicting import check_distillable


def check_numbers(**numbers: int) -> None:
    """Raise ValueError for a strategy's setting that is negative."""
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"strategy.{name}={number}: must be at least 0")


def check_exchange(setup: Setup) -> None:
    """Refuse all rules but the mean, and transforms: both would see the models' updates, which are not sent.

    Raises:
        ValueError: there is such a rule, or a transform.
    """
    name = type(setup.strategy).__name__
    if not isinstance(setup.aggregator, Mean):
        found = type(setup.aggregator).__name__
        raise ValueError(f"strategy.aggregator={found}: predictions of {name} need the mean, strategy/aggregator=mean")
    if setup.transforms:
        first = next(iter(setup.transforms))
        raise ValueError(f"strategy.transforms.{first}: clients of {name} send no update of a model to transform")


def check_public(setup: Setup, public_samples: int, num_classes: int, *, labels: bool = False) -> None:
    """Refuse a federation without that many public samples, and a module that cannot be distilled into.

    Args:
        setup: the run's parts.
        public_samples: how many there have to be.
        num_classes: of a prediction.
        labels: whether their classes have to be known.

    Raises:
        ValueError: the setup lacks something.
    """
    name, public = type(setup.strategy).__name__, setup.public
    if public is None or not public_samples:
        raise ValueError(f"strategy: {name} needs public samples: public_samples=1000")
    if len(public) != public_samples:
        raise ValueError(f"strategy.public_samples={public_samples}: there are {len(public)} public samples")
    if labels and public.labels is None:
        raise ValueError(f"strategy: {name} needs the classes of the public samples, and they have none")
    check_distillable(setup.module, public, num_classes)


def on_public(problem: LocalProblem, targets: Tensor, epochs: int) -> dict[str, Any]:
    """What to change in a problem, to train on the public samples with other targets.

    Args:
        problem: of a client, or of the server.
        targets: class probabilities, `[public samples, classes]`.
        epochs: passes over the samples.
    """
    assert problem.public is not None, "`check_public` refuses this"
    source = retargeted(problem.public, targets.float())
    return {"source": source, "indices": np.arange(len(source)), "epochs": epochs, "steps": None}


def in_turn(problem: LocalProblem, stages: Sequence[Mapping[str, Any]]) -> Generator[LocalProblem, Trained, Trained]:
    """Train one stage after the other; returns the last result, with all steps counted.

    Args:
        problem: the client's, to be changed.
        stages: what each stage changes in it.
    """
    trained = yield replace(problem, **stages[0])
    for stage in stages[1:]:
        before = trained.num_steps
        trained = yield trained.next(problem, **stage)
        trained = replace(trained, num_steps=before + trained.num_steps)
    return trained


def one_hot(labels: np.ndarray | None, num_classes: int) -> Tensor:
    """Classes as probabilities, float32 `[n, num_classes]`."""
    assert labels is not None, "`check_public` refuses this"
    return torch.nn.functional.one_hot(torch.from_numpy(labels), num_classes).float()
