"""What a step and a client cost, counted in tensor operations and bytes: regressions show whatever machine it is."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from flrl.kernels import compiling
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer, TracedTrainer, VectorizedTrainer
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, blobs, make_worker


class Counting(TorchDispatchMode):
    """Counts the tensor operations that run, and the bytes that they write: to new tensors, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.operations += 1
        described = {a.name: a.alias_info for a in func._schema.arguments}
        given = {**dict(zip(described, args, strict=False)), **(kwargs or {})}
        changed = [value for name, value in given.items() if (alias := described[name]) is not None and alias.is_write]
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors(given)}
        made = [tensor for tensor in tensors(results) if tensor.untyped_storage().data_ptr() not in known]
        self.bytes += sum(tensor.nbytes for tensor in tensors(changed) + made)
        return results


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def counted(trainer: Any, sizes: tuple[int, ...], features: int = 5) -> Counting:
    """What a round takes whose engine has recorded what it wants to record."""
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    torch.manual_seed(0)
    source = blobs(sum(sizes), features=features)
    worker = make_worker(strategy, module=Linear(features=features), trainer=trainer, sizes=sizes, source=source)
    tasks = worker.batched([ClientTask(1, client, size, float(size)) for client, size in enumerate(sizes)])
    broadcast = Broadcast(1, worker.model.vector.clone(), float(sum(sizes)))
    worker.train(broadcast, tasks, lambda report: None)
    with Counting() as counting:
        worker.train(broadcast, tasks, lambda report: None)
    return counting


def operations(trainer: Any, sizes: tuple[int, ...]) -> int:
    return counted(trainer, sizes).operations


@pytest.fixture(autouse=True)
def compiled_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run with much to do, however much this process has had to do before; they are not counted."""
    monkeypatch.setattr(compiling, "_LITTLE_WORK", 0)


@pytest.mark.parametrize(("kind", "limit"), [(EagerTrainer, 22), (TracedTrainer, 13)])
def test_operations_a_step(kind: Any, limit: int) -> None:
    short, long = (operations(kind(batch_size=8), (8 * steps,)) for steps in (10, 30))
    assert (long - short) / 20 <= limit


def test_a_client_batch_costs_no_more_operations_for_more_clients() -> None:
    """But for what is done for each client once: its batches, its update and its part of the sum."""
    few, many = (operations(VectorizedTrainer(batch_size=8, width=8), (80,) * clients) for clients in (4, 8))
    short, long = (operations(VectorizedTrainer(batch_size=8, width=8), (8 * steps,) * 8) for steps in (10, 30))
    assert (many - few) / 4 <= 27
    assert (long - short) / 20 <= 60


def test_operations_a_client() -> None:
    """What does not depend on its number of steps."""
    few, many = (operations(TracedTrainer(batch_size=8), (40,) * clients) for clients in (4, 8))
    short, long = (operations(TracedTrainer(batch_size=8), (8 * steps,)) for steps in (10, 30))
    assert (many - few) / 4 - 5 * (long - short) / 20 <= 36


FEATURES = 2000
MODEL_BYTES = 4 * (3 * FEATURES + 3)
BATCH_BYTES = 4 * 8 * FEATURES
SMALL_BYTES = 1100
"""Losses, logits and their gradients."""


@pytest.mark.parametrize(
    ("trainer", "limit"),
    [
        (EagerTrainer(batch_size=8), 2 * MODEL_BYTES),  # the gradient, and the stepped model
        (TracedTrainer(batch_size=8), 2 * MODEL_BYTES),
        (TracedTrainer(batch_size=8, fuse=True), MODEL_BYTES),
        (VectorizedTrainer(batch_size=8), 2 * MODEL_BYTES + BATCH_BYTES),  # batches are copied into a stacked one
    ],
    ids=["eager", "traced", "fused", "vectorized"],
)
def test_bytes_written_a_step(trainer: Any, limit: int) -> None:
    short, long = (counted(trainer, (8 * steps,), FEATURES).bytes for steps in (10, 30))
    assert (long - short) / 20 <= limit + SMALL_BYTES


def test_bytes_written_a_client() -> None:
    """The broadcast model, once, and its update, in float64."""
    few, many = (counted(TracedTrainer(batch_size=8), (40,) * clients, FEATURES).bytes for clients in (4, 8))
    short, long = (counted(TracedTrainer(batch_size=8), (8 * steps,), FEATURES).bytes for steps in (10, 30))
    assert (many - few) / 4 - 5 * (long - short) / 20 <= 3 * MODEL_BYTES + SMALL_BYTES
