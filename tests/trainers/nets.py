"""Modules and a run that the tests of the engines share."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.sampling import AllClients
from flrl.strategies import Strategy
from flrl.trainers import Trainer
from tests.toys import Linear, fit, make_worker

SIZES = (20, 28, 40, 8, 4)
AVERAGE: dict[str, Any] = {
    "rounds": 2,
    "sampler": AllClients(),
    "server_optimizer": partial(torch.optim.SGD, lr=1.0),
}


class Net(Linear):
    """A net of one's own with an optimizer of one's own; logs a number."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., Any] | None = None, schedule: bool = False) -> None:
        super().__init__()
        self.net, self.optimizer, self.schedule = net, optimizer, schedule

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/double", loss * 2)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers() if self.optimizer is None else self.optimizer(self.parameters())
        return ([optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]) if self.schedule else optimizer


def mlp(dropout: float = 0.5) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def trained(strategy: Strategy, module: Callable[[], pl.LightningModule], trainer: Trainer, **options: Any) -> Any:
    torch.manual_seed(0)
    worker = make_worker(strategy, module=module(), trainer=trainer, **{"sizes": SIZES, **options})
    state, history = fit(worker)
    return state.vector, history


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Recurrent(nn.Module):
    """Takes the features one after the other."""

    def __init__(self, kind: Any = nn.GRU) -> None:
        super().__init__()
        self.cells, self.head = kind(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[:, :, None])[0][:, -1])


class Factors(nn.Module):
    """A layer that is the product of two: each one's gradient is a product with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.first @ self.second)


def frozen(net: nn.Module) -> nn.Module:
    next(net.parameters()).requires_grad_(False)
    return net


MODULES: dict[str, Callable[[], nn.Module]] = {
    "dropout": mlp,
    "batch norm": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "tied": lambda: Tied(),
    "a frozen layer": lambda: frozen(mlp()),
    "layer norm and gelu": lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    "recurrent": lambda: Recurrent(),
    "factors": lambda: Factors(),
}


class Step(Net):
    """A module whose training step is given."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__(mlp(0.0))
        self.step, self.count, self.seen = step, 0, []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, nn.functional.cross_entropy(self.net(batch[0]), batch[1]), batch_idx)


def counting(module: Any, loss: Tensor, batch_idx: int) -> Tensor:
    module.count += 1
    return loss * (1 + 0.01 * module.count)


def collecting(module: Any, loss: Tensor, batch_idx: int) -> Tensor:
    module.seen.append(0)
    return loss * (1 + 0.01 * len(module.seen))


STEPS: dict[str, tuple[Callable[..., Any], str]] = {
    "branches on the loss": (lambda m, loss, i: loss * 2 if loss > 1 else loss, ""),
    "batch_idx": (lambda m, loss, i: loss * 2 if i % 2 else loss, "depends on batch_idx"),
    "the epoch": (lambda m, loss, i: loss * (1 + m.current_epoch), "reads Trainer.current_epoch"),
    "an attribute": (counting, "changes module.count"),
    "a list": (collecting, "changes module.seen"),
    "Python's generator": (lambda m, loss, i: loss * random.random(), "random numbers from Python"),
    "logs a number": (lambda m, loss, i: (m.log("a", 1.5), loss)[1], "logs a number that is no tensor"),
    "skips": (lambda m, loss, i: None, "skipped a batch"),
}


class Sharing(nn.Module):
    """Its two weights have one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.p + self.q)


class Turned(nn.Module):
    """The gradients come transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(60, 5)), nn.Parameter(torch.randn(3, 60))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", torch.einsum("bi,oi->bo", x, self.w).tanh(), self.head)


class Penalised(nn.Module):
    """A weight whose only gradient is the same number everywhere, and a bias with a dimension too many."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias, self.level = (
            nn.Linear(5, 3),
            nn.Parameter(torch.randn(1, 3)),
            nn.Parameter(torch.ones(4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.bias + self.level.sum()[None, None] * torch.tensor([1.0, 2.0, 3.0])


class Embedded(nn.Module):
    """Looks up each rounded number."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        self.table, self.outward = nn.Embedding(10, 6, sparse=sparse), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.table((3 * x).round().long().clamp(0, 9)).mean(1))


class Attentive(nn.Module):
    """Five tokens of one number each, mixed by attention."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(1, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.layer(self.inward(x[..., None])).mean(1))


class Scheduled(Linear):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]
