"""Modules that keep state outside of parameters and buffers: what they do in a step depends on the steps before it."""

import random
from collections import deque
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from tests.toys import Linear


class Stateful(Linear):
    """A classifier whose loss is multiplied by a number that a subclass keeps track of."""

    def factor(self, batch: Any) -> Any:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.factor(batch)


class Counter(Stateful):
    """Warm-up by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def factor(self, batch: Any) -> float:
        self.steps += 1
        return min(1.0, self.steps / 20)


class PlainTensor(Stateful):
    """A tensor that is no buffer, changed in place and through `.data`."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.tensor([1.0, 1.0])

    def factor(self, batch: Any) -> Tensor:
        self.level[0] *= 0.9
        self.level.data[1] *= 0.8
        return self.level.sum()


class Listed(Stateful):
    """A list of what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def factor(self, batch: Any) -> float:
        self.sizes.append(len(batch[0]))
        return 1 / len(self.sizes)


class Nested(Stateful):
    """A dict in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, dict[str, int]] = {"train": {"steps": 0}}

    def factor(self, batch: Any) -> float:
        self.counts["train"]["steps"] += 1
        return 1 / self.counts["train"]["steps"]


class OwnGenerator(Stateful):
    """torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def factor(self, batch: Any) -> Tensor:
        return torch.rand((), generator=self.generator)


class NumpyGenerator(Stateful):
    """NumPy's new generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(5)

    def factor(self, batch: Any) -> float:
        return float(self.generator.random())


class NumpyRandomState(NumpyGenerator):
    """NumPy's old generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.RandomState(5)  # type: ignore[assignment]

    def factor(self, batch: Any) -> float:
        return float(self.generator.random())


class PythonGenerator(NumpyGenerator):
    """Python's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = random.Random(5)  # type: ignore[assignment]


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


class Submodule(Linear):
    """A counter in a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = Counting()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.counting(self.net(batch[0])), batch[1])


class TrainMetric(Stateful):
    """A torchmetrics object whose count enters the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def factor(self, batch: Any) -> Tensor:
        self.accuracy.update(self.net(batch[0]), batch[1])
        return 0.5 + self.accuracy.compute()


class LoggedMetric(Linear):
    """A torchmetrics object that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scores = self.net(batch[0])
        self.accuracy(scores, batch[1])
        self.log("train/accuracy", self.accuracy)
        return nn.functional.cross_entropy(scores, batch[1])


class Meter:
    """An object of a user's own class."""

    __slots__ = ("history", "total")

    def __init__(self) -> None:
        self.total, self.history = 0.0, deque(maxlen=3)  # type: ignore[var-annotated]

    def __call__(self, value: float) -> float:
        self.total += value
        self.history.append(value)
        return sum(self.history) / self.total


class Metered(Stateful):
    """An average over the last values, in an object with slots."""

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter()

    def factor(self, batch: Any) -> float:
        return self.meter(float(batch[0].abs().mean()))


class OfTheClass(Stateful):
    """A number and a list that belong to the class."""

    steps: ClassVar[int] = 0
    seen: ClassVar[list[int]] = []

    def factor(self, batch: Any) -> float:
        type(self).steps += 1
        self.seen.append(1)
        return 2 / (self.steps + len(self.seen))


class Array(Stateful):
    """A NumPy array."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = np.ones(4)

    def factor(self, batch: Any) -> float:
        self.levels[1] *= 0.9
        return float(self.levels.mean())


class Hooking(Linear):
    """Registers another hook for each client."""

    def on_train_start(self) -> None:
        self.net.register_forward_hook(lambda module, args, output: output * 0.9)
        self.net.weight.register_hook(lambda gradient: gradient * 0.9)


class Toggling(Stateful):
    """Adds an attribute, removes another, and switches a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = True

    def factor(self, batch: Any) -> float:
        if hasattr(self, "first"):
            del self.first
            self.net.eval()
            return 0.1
        self.later = getattr(self, "later", 0) + 1
        return 1 / self.later


class Configured(Stateful):
    """Its optimizer's making leaves something behind."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def factor(self, batch: Any) -> float:
        return 1 / self.made

    def configure_optimizers(self) -> Any:
        self.made += 1
        return torch.optim.SGD(self.parameters(), lr=0.1 / self.made)


class WholeBuffer(Stateful):
    """A buffer of whole numbers, which is not averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor(0))

    def factor(self, batch: Any) -> Tensor:
        self.count = self.count + 1
        return 1 / self.count


class AveragedBuffer(Stateful):
    """An exponential average in a buffer, replaced at each step: it is averaged over clients, and lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.ones(()))

    def factor(self, batch: Any) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * batch[0].abs().mean()
        return self.average


class Iterating(Stateful):
    """An iterator cannot be put back."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = iter(range(10**6))

    def factor(self, batch: Any) -> float:
        return 1 / (1 + next(self.numbers))


class Teacher(Linear):
    """A frozen copy that follows the net, changed behind autograd's back: it would not be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Linear(5, 3).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.teacher.weight.data.mul_(0.9).add_(self.net.weight.data, alpha=0.1)
        return super().training_step(batch, batch_idx) + (self.teacher(batch[0]) - self.net(batch[0])).pow(2).mean()


class Growing(Linear):
    """A layer that is made while a client trains would not be sent."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(3, 3)
        return nn.functional.cross_entropy(self.late(self.net(batch[0])), batch[1])


class Loose(Linear):
    """Steps a tensor that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(3, requires_grad=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]) * self.scale, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.parameters(), self.scale], lr=0.1)


class StatefulEvaluation(Linear):
    """Evaluation changes what follows, in attributes and in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0
        self.register_buffer("seen", torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.scale * self.seen

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.scale /= 2
        self.seen += 1
        self.log("test/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]) * self.scale * self.seen)


_STEPS = 0
_SEEN: list[int] = []


def _count() -> int:
    global _STEPS
    _STEPS += 1
    return _STEPS


class Global(Stateful):
    """Counts in a global, by a function of its Python module."""

    def factor(self, batch: Any) -> float:
        return 1 / _count()


class GlobalList(Stateful):
    """Collects in a global list."""

    def factor(self, batch: Any) -> float:
        _SEEN.append(1)
        return 1 / len(_SEEN)


def enclosed() -> Linear:
    """A module whose class counts in a variable of this function."""
    steps = 0

    class Enclosed(Stateful):
        def factor(self, batch: Any) -> float:
            nonlocal steps
            steps += 1
            return 1 / steps

    return Enclosed()
