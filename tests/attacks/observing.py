"""Observations of a client that is trained here, for tests of attacks on members, classes and properties."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flrl.attacks import Attack, Candidates, Finding, Inputs, Local, Observation
from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.models import Classifier
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, Strategy
from flrl.strategies.running import train_clients
from flrl.trainers import EagerTrainer, LocalProblem, TracedTrainer, Trainer
from flrl.types import Broadcast, ClientTask


def classifier(net: Callable[..., Any], shape: Sequence[int] = (1, 8, 8), lr: float = 0.1, seed: int = 0) -> Classifier:
    """A classifier of ten classes with plain SGD, initialised from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = net(input_shape=shape, num_classes=10)
    return Classifier(net=made, num_classes=10, optimizer=partial(torch.optim.SGD, lr=lr))


def plain() -> Strategy:
    return FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))


def inputs_of(source: TensorSource) -> Inputs:
    batch, _ = next(iter(source.batches(np.arange(len(source)), len(source))))
    return Inputs(tuple(batch.shape[1:]), batch.dtype, batch.min(), batch.max(), int(source.targets.max()) + 1)


def client_update(
    module: pl.LightningModule, source: TensorSource, members: np.ndarray, trainer: Trainer, sent: Tensor, *,
    round: int = 1, client: int = 0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """What a client sends back after training."""
    model = BoundModel(deepcopy(module))
    task = ClientTask(round, client, len(members), float(len(members)))
    problem = LocalProblem.of(model, source, members, task, Broadcast(round, sent, float(len(members))), seed)
    return train_clients(plain(), [problem], trainer)[0].vectors["update"]


def observed(
    module: pl.LightningModule, source: TensorSource, members: np.ndarray, *, trainer: EagerTrainer | None = None,
    others: np.ndarray | None = None, public: np.ndarray | None = None, unseen: bool = False,
    sent: Tensor | None = None, **rest: Any,
) -> tuple[Observation, np.ndarray]:  # fmt: skip
    """The observation of a client with the samples `members`, and which of the candidates are members.

    Candidates are members and `others`, mixed; `unseen` trains the client on nothing instead.
    """
    trainer = trainer or TracedTrainer(batch_size=16, local_epochs=30)
    model = BoundModel(deepcopy(module))
    sent = model.vector.clone() if sent is None else sent
    update = torch.zeros(model.layout.size, dtype=torch.float64)
    if not unseen:
        update = client_update(module, source, members, trainer, sent)
    candidates, truth = None, np.zeros(0, bool)
    if others is not None:
        order = np.random.default_rng(3).permutation(len(members) + len(others))
        candidates = Candidates(source, np.concatenate([members, others])[order])
        truth = order < len(members)
    options = {
        "round": 1, "clients": [0], "module": model.module, "layout": model.layout, "sent": sent, "update": update,
        "num_samples": len(members), "inputs": inputs_of(source), "seed": 0, "candidates": candidates,
        "public": None if public is None else source.subset(public),
        "local": Local(False, 0.1, trainer.batch_size, trainer.local_epochs, trainer.local_steps, trainer.shuffle),
    }  # fmt: skip
    return Observation(**(options | rest)), truth


def found(attack: Attack, observation: Observation) -> Finding:
    """What an attack finds; it must have no objection, and its progress must rise to 1."""
    shares: list[float] = []
    assert attack.objection(observation) is None
    finding = attack.find(observation, lambda share, text: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return finding
