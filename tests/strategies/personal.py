"""What tests of personalised strategies share: runs whose states are kept, and softmax regression in NumPy."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from flrl.data import TensorSource
from flrl.evaluation import Evaluator
from flrl.sampling import AllClients, UniformSampler
from flrl.strategies import Strategy
from flrl.trainers import EagerTrainer, LocalProblem
from flrl.types import ClientTask, ServerState
from flrl.worker import Worker
from tests.strategies.test_scaffold import A, B, Double, N, Quadratic, gradient, states
from tests.toys import make_worker

SIZES, BATCH, LR, DECAY = (20, 30, 40), 8, 0.1, 0.9
NEVER = Evaluator(every=999)
Client = tuple[np.ndarray, np.ndarray]


def averaging(rounds: int, num: int | None = None, *, lr: float = 1.0, **more: Any) -> dict[str, Any]:
    sampler = AllClients() if num is None else UniformSampler(num=num)
    return {"rounds": rounds, "sampler": sampler, "server_optimizer": partial(torch.optim.SGD, lr=lr), **more}


class Federation:
    """Softmax regression in float64 on three unequal clients, two epochs a round."""

    def __init__(
        self, strategy: Strategy, source: TensorSource | None = None, seed: int = 0, module: Any = Double
    ) -> None:
        trainer = EagerTrainer(batch_size=BATCH, local_epochs=2, lr_decay=DECAY)
        torch.manual_seed(seed)
        self.worker = make_worker(
            strategy, module=module(), sizes=SIZES, trainer=trainer, evaluator=NEVER, source=source
        )
        self.start = self.worker.model.vector.clone().numpy()
        source = self.worker.data.splits.train
        indices = [self.worker.data.train_indices(client) for client in range(3)]
        self.clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
        self.cohorts = [strategy.sampler(3, seed=0, round=round).tolist() for round in range(1, strategy.rounds + 1)]

    def states(self) -> list[ServerState]:
        return states(self.worker)


def batches(client: Client, epochs: int = 2) -> int:
    return epochs * -(-len(client[1]) // BATCH)


def slope(w: np.ndarray, client: Client, number: int) -> np.ndarray:
    """The gradient on a batch, counted over epochs."""
    first = number % batches(client, 1) * BATCH
    return gradient(w, client[0][first : first + BATCH], client[1][first : first + BATCH])


def shares(cohort: list[int]) -> np.ndarray:
    sizes = np.array(SIZES, float)[cohort]
    return sizes / sizes.sum()


def personal(worker: Worker, state: ServerState, client: int) -> torch.Tensor:
    """The vector that `personal_model` gives of a client after a round."""
    strategy, sizes = worker.strategy, worker.data.sizes
    broadcast = strategy.broadcast(state, state.round + 1, float(sum(sizes)))
    kept = {name: t for name, t in state.memory.get(client, {}).items() if name in strategy.evaluates}
    task = ClientTask(state.round, client, int(sizes[client]), float(sizes[client]), kept)
    problem = LocalProblem.of(worker.model, worker.data.splits.train, np.arange(1), task, broadcast, 0)
    found = strategy.personal_model(problem)
    assert found is not None
    return found


def on_quadratics(strategy: Strategy, epochs: int, samples: Sequence[np.ndarray] = (A, B)) -> tuple[Worker, Any]:
    """A run on three quadratics, `a / 2 * (w - b)^2`, one batch a client: its worker and last state."""
    values = torch.from_numpy(np.repeat(np.stack(samples, axis=1), N, axis=0))
    trainer = EagerTrainer(batch_size=5, local_epochs=epochs)
    source = TensorSource(values, torch.zeros(len(values)))
    worker = make_worker(
        strategy, module=Quadratic(), sizes=N.tolist(), source=source, trainer=trainer, evaluator=NEVER
    )
    return worker, states(worker)[-1]
