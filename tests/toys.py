"""Small modules, data and federations that tests share."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.aggregation import Parcel, Reducer
from flrl.backends import SerialBackend
from flrl.callbacks import Callback, Callbacks
from flrl.data import FederatedData, Splits, TensorSource
from flrl.evaluation import Evaluator
from flrl.process_setup import prepare
from flrl.rounds import initial_state
from flrl.sampling import AllClients
from flrl.setup import Setup
from flrl.strategies import FedAvg, Strategy
from flrl.trainers import EagerTrainer, Trainer
from flrl.types import RoundRecord, ServerState
from flrl.worker import Worker


class Linear(pl.LightningModule):
    """Linear softmax classifier with plain SGD."""

    def __init__(self, lr: float = 0.1, features: int = 5, classes: int = 3, **sgd: Any) -> None:
        super().__init__()
        self.net = nn.Linear(features, classes)
        self.lr, self.sgd = lr, sgd

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0].to(next(self.net.parameters()).dtype)), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        self.log("test/accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, **self.sgd)


class Normed(Linear):
    """Two layers with BatchNorm between them."""

    def __init__(self, **sgd: Any) -> None:
        super().__init__(**sgd)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class Convolved(Linear):
    """The last bits of a step of a client batch depend on the number of its clients."""

    def __init__(self, rows: int = 1, columns: int = 5, classes: int = 3) -> None:
        super().__init__()
        convolution, layer = nn.Conv2d(1, 4, (1, 3)), nn.Linear(4 * rows * (columns - 2), classes)
        image = nn.Unflatten(1, (1, rows, columns))
        self.net = nn.Sequential(nn.Flatten(), image, convolution, nn.ReLU(), nn.Flatten(), layer)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class Late(Linear):
    """Builds its layers in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        del self.net

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class Rich(pl.LightningModule):
    """A user's module with all that ordinary ones have: dropout, BatchNorm, momentum, a scheduler, hooks, logs."""

    def __init__(self, interval: str = "step") -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(5, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(16, 16),
            nn.ReLU(),
            nn.Linear(16, 3),
        )
        self.interval = interval
        self.calls: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("noise", torch.rand(()))
        self.log("epoch", float(self.current_epoch))
        self.log_dict({"lr": self.lr_schedulers().get_last_lr()[0], "step": float(self.global_step)})
        return {"loss": loss}

    def test_step(self, batch: Any) -> None:
        self.log("test/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_train_epoch_start(self) -> None:
        self.calls.append(f"epoch {self.current_epoch}")

    def on_after_backward(self) -> None:
        for parameter in self.parameters():
            parameter.grad.mul_(0.5)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append(f"batch {batch_idx} {float(outputs['loss']):.6f}")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


def blobs(num_samples: int = 90, features: int = 5, classes: int = 3, seed: int = 7) -> TensorSource:
    """Overlapping clusters, one a class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_samples) % classes
    centres = np.random.default_rng(0).normal(size=(classes, features))
    inputs = centres[labels] + rng.normal(size=(num_samples, features))
    return TensorSource(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def blocks(sizes: Sequence[int]) -> Any:
    """A partition into consecutive blocks of the given sizes; FederatedData shuffles within them."""
    return lambda num_samples, labels, rng: np.repeat(np.arange(len(sizes)), sizes)


def make_worker(
    strategy: Strategy,
    *,
    module: pl.LightningModule | None = None,
    sizes: Sequence[int] = (20, 30, 40),
    trainer: Trainer | None = None,
    source: TensorSource | None = None,
    seed: int = 0,
    evaluator: Evaluator | None = None,
    device: str = "cpu",
    root_samples: int = 0,
    kinds: Sequence[pl.LightningModule] = (),
    holdout: float = 0.0,
) -> Worker:
    """A worker over blobs; the module is initialised from the seed. A strategy has its public samples besides."""
    source = blobs(sum(sizes)) if source is None else source
    public = getattr(strategy, "public_samples", 0)
    splits = Splits(source, blobs(60, seed=8), blobs(public, seed=9) if public else None)
    data = FederatedData(
        splits, blocks(sizes), seed=seed, root_samples=root_samples, public_samples=public, holdout=holdout
    )
    if module is None:
        torch.manual_seed(seed)
        module = Linear() if strategy.batchnorm == "average" else Normed()
    trainer = EagerTrainer(batch_size=8) if trainer is None else trainer
    if not strategy.sends_model and not kinds and not strategy.personal:
        kinds = [deepcopy(module)]
    own = [prepare(kind, threads=1, device=device, personal=["*"]) for kind in kinds]
    model = prepare(module, threads=1, device=device, personal=strategy.personal, batchnorm=strategy.batchnorm)
    if model.local.device.type != "cpu":
        source.move_to(model.local.device)
    trainer.check(Setup.of(module, strategy, trainer, data.sizes, num_root_samples=root_samples))
    return Worker(model, data, trainer, strategy, evaluator or Evaluator(batch_size=50), seed, kinds=own)


def setup_of(
    module: pl.LightningModule | None = None,
    trainer: Trainer | None = None,
    strategy: Strategy | None = None,
    sizes: Sequence[int] = (20, 30, 40),
    num_holding_out: int = 0,
    num_root_samples: int = 0,
    public: Any = None,
    devices: Any = None,
) -> Setup:
    """The setup of these parts, and ordinary ones beside them, to be checked."""
    average = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    return Setup.of(
        Linear() if module is None else module,
        average if strategy is None else strategy,
        EagerTrainer() if trainer is None else trainer,
        sizes,
        num_holding_out=num_holding_out,
        num_root_samples=num_root_samples,
        public=public,
        devices=devices,
    )


def merged(reducers: Sequence[Reducer]) -> tuple[dict[str, Tensor], float]:
    """The result of the first reducer once it has what the others have sent, as a controller gives it."""
    parcels = [reducer.parcel() for reducer in reducers[1:]]
    sum_here = reducers[0].merge([Parcel(None, parcel.extras, parcel.numbers) for parcel in parcels])
    for parcel in parcels:
        if sum_here is None:
            assert parcel.summand is None
        else:
            sum_here.add_(parcel.summand)
    return reducers[0].result()


def fit(
    worker: Worker,
    *,
    state: ServerState | None = None,
    history: Sequence[RoundRecord] = (),
    callbacks: Sequence[Callback] = (),
) -> tuple[ServerState, list[RoundRecord]]:
    """Run a worker's strategy on the serial backend, from its module's present values unless a state is given."""
    backend = SerialBackend(device=worker.model.local.device.type)
    backend.start(worker)
    layout = worker.model.layout
    if state is None:
        state = initial_state(worker.strategy, worker.model.vector.cpu().clone(), layout, worker.seed)
    return worker.strategy.fit(
        state,
        backend=backend,
        layout=layout,
        seed=worker.seed,
        callbacks=Callbacks(callbacks),
        history=history,
        threat=worker.threat,
        fleet=worker.fleet,
    )


class Notes:
    """What code notes for a test while clients train, in a queue: a list would be shared state, and refused."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()

    def add(self, thing: Any) -> None:
        self._queue.put(thing)

    def all(self) -> list[Any]:
        """What was noted since the last call."""
        return [self._queue.get() for _ in range(self._queue.qsize())]
