"""What a step and a client cost, counted in tensor operations: a regression shows whatever machine it runs on."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer, TracedTrainer, VectorizedTrainer
from tests.toys import Linear, fit, make_worker


class Counting(TorchDispatchMode):
    """Counts the tensor operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def operations(trainer: Any, sizes: tuple[int, ...], rounds: int = 1) -> int:
    """Of a run whose engine has recorded what it wants to record."""
    strategy = FedAvg(rounds=rounds, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    torch.manual_seed(0)
    worker = make_worker(strategy, module=Linear(), trainer=trainer, sizes=sizes)
    fit(worker)
    with Counting() as counting:
        fit(worker)
    return counting.operations


@pytest.mark.parametrize(("kind", "limit"), [(EagerTrainer, 22), (TracedTrainer, 13)])
def test_operations_a_step(kind: Any, limit: int) -> None:
    short, long = (operations(kind(batch_size=8), (8 * steps,)) for steps in (10, 30))
    assert (long - short) / 20 <= limit


def test_a_stack_costs_no_more_operations_for_more_clients() -> None:
    """But for what is done for each client once: its batches, its update and its part of the sum."""
    few, many = (operations(VectorizedTrainer(batch_size=8), (80,) * clients) for clients in (4, 8))
    short, long = (operations(VectorizedTrainer(batch_size=8), (8 * steps,) * 8) for steps in (10, 30))
    assert (many - few) / 4 <= 42
    assert (long - short) / 20 <= 60


def test_operations_a_client() -> None:
    """What does not depend on its number of steps."""
    few, many = (operations(TracedTrainer(batch_size=8), (40,) * clients) for clients in (4, 8))
    short, long = (operations(TracedTrainer(batch_size=8), (8 * steps,)) for steps in (10, 30))
    assert (many - few) / 4 - 5 * (long - short) / 20 <= 51
