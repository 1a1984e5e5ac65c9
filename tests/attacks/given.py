"""Observations by hand, from a module and the samples that it is trained on."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flrl.attacks import Finding, Inputs, Local, Observation
from flrl.layout import ParameterLayout
from flrl.models import Classifier

GRADIENT = Local(only_gradient=True, lr=None, batch_size=10**6, epochs=1, steps=None, shuffle=False)


def classifier(net: nn.Module, num_classes: int = 10, lr: float = 0.1) -> Classifier:
    return Classifier(net=net, num_classes=num_classes, optimizer=partial(torch.optim.SGD, lr=lr))


def digits(count: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Handwritten digits in [0, 1], `[count, 1, size, size]`, and their classes."""
    data = load_digits()
    images = torch.from_numpy(data.images[:count]).float()[:, None] / 16
    if size != 8:
        images = nn.functional.interpolate(images, size=(size, size), mode="bilinear").clamp(0, 1)
    return images, torch.from_numpy(data.target[:count]).long()


def observe(
    module: pl.LightningModule,
    inputs: Tensor,
    labels: Tensor,
    *,
    local: Local = GRADIENT,
    num_classes: int = 10,
    clients: Sequence[int] = (0,),
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    **more: Any,
) -> Observation:
    """What an observer sees of a client that has these samples, and trains on them in their order."""
    layout = ParameterLayout(module)
    sent = layout.flatten(module).clone()
    trained = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1.0 if local.lr is None else local.lr)
    size = min(len(inputs), local.batch_size)
    batches = -(-len(inputs) // size)
    for step in range(local.num_steps(len(inputs))):
        start = step % batches * size
        optimizer.zero_grad()
        trained.training_step((inputs[start : start + size], labels[start : start + size]), step).backward()
        optimizer.step()
    update = layout.flatten(trained).double() - sent.double()
    if local.only_gradient:
        gradients = [parameter.grad.flatten() for parameter in trained.parameters() if parameter.requires_grad]
        update[: layout.num_trainable] = -torch.cat(gradients).double()
    shape, scalar = tuple(inputs.shape[1:]), torch.tensor
    described = Inputs(shape, inputs.dtype, scalar(low), scalar(high), num_classes)
    return Observation(
        round=1, clients=clients, module=copy.deepcopy(module), layout=layout, sent=sent, update=update,
        num_samples=len(inputs), local=local, inputs=described, seed=seed, **more,
    )  # fmt: skip


def mse(found: Finding, inputs: Tensor) -> float:
    """Mean squared error, samples in their order."""
    assert found.inputs is not None
    return float((found.inputs - inputs).square().mean())


def quiet(share: float, text: str) -> None:
    assert 0 <= share <= 1
    assert text


class Text(pl.LightningModule):
    """Classifies texts by the mean over a transformer layer's, or the last of an LSTM's outputs."""

    def __init__(self, kind: str, words: int = 50, length: int = 6, width: int = 16) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Embedding(length, width)
        if kind == "transformer":
            self.body = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True, activation="gelu")
        else:
            self.body = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1]))
        if self.kind == "transformer":
            return self.head(self.body(vectors).mean(1))
        return self.head(self.body(vectors)[0][:, -1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)
