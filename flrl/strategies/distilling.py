"""What strategies have in common whose clients exchange predictions on public samples."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.data.retargeted import retargeted
from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Strategy
from flrl.strategies.checking import check_mean
from flrl.trainers import LocalProblem, Trained
from flrl.trainers.predicting import check_distillable
from flrl.types import Broadcast, ServerState


class PublicExchange(Strategy):
    """Base class of strategies that exchange predictions of public samples, and no models.

    Args:
        public_samples: number of public samples.
        num_classes: numbers in a prediction.
        options: as for `Strategy`.

    Raises:
        ValueError: a setting is invalid.
    """

    sends_model = False
    shared = "consensus"
    """The state's variable that clients are sent, once there is one, as float32."""

    def __init__(self, *, public_samples: int, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        check_numbers(0, public_samples=public_samples)
        check_numbers(1, num_classes=num_classes)
        self.public_samples, self.num_classes = public_samples, num_classes

    @property
    def needs_classes(self) -> bool:
        """Whether the classes of the public samples have to be known."""
        return False

    def check(self, setup: Setup) -> None:
        """Refuse a federation without public samples.

        Raises:
            ValueError: as for `check_exchange` and `check_public`.
        """
        super().check(setup)
        check_exchange(setup)
        check_public(setup, self.public_samples, self.num_classes, labels=self.needs_classes)

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the predictions; the update of the model is empty."""
        return {**super().vector_sizes(layout), "predictions": self.public_samples * self.num_classes}

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """What the server has made of the last round's predictions, if there is something."""
        sent = {name: tensor.float() for name, tensor in state.variables.items() if name == self.shared}
        return replace(super().broadcast(state, round, total_weight), variables=sent)


def check_numbers(least: int, **numbers: int) -> None:
    """Raise ValueError for a strategy's setting below the least one."""
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"strategy.{name}={number}: must be at least {least}")


def check_exchange(setup: Setup) -> None:
    """Refuse all rules but the mean, and transforms: both would see the models' updates, which are not sent.

    Raises:
        ValueError: there is such a rule, or a transform.
    """
    name = type(setup.strategy).__name__
    check_mean(setup.aggregator, f"predictions of {name}")
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
