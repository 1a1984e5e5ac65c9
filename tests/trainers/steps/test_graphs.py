"""Graphs with SGD steps: what is fused, and that it is the same training."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flrl.bound_model import BoundModel
from flrl.errors import ClientError
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer, TracedTrainer
from flrl.trainers.steps.graphs import with_sgd
from flrl.trainers.steps.record import record
from tests.trainers.nets import AVERAGE, MODULES, STEPS, Net, Penalised, Sharing, Step, Turned, mlp, trained


@pytest.mark.parametrize("make", [Sharing, Turned, Penalised])
def test_unusual_gradients_can_be_fused(make: Any) -> None:
    engines = (EagerTrainer(batch_size=4), TracedTrainer(batch_size=4, fuse=True))
    eager, fused = (trained(FedAvg(**AVERAGE), lambda: Net(make()), engine)[0] for engine in engines)
    assert float((fused - eager).norm()) <= 1e-6 * float(eager.norm())


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_fused_steps_are_eagers_up_to_rounding(make: Callable[[], nn.Module]) -> None:
    eager, fused = (
        trained(FedAvg(**AVERAGE), lambda: Net(make()), kind(batch_size=4, local_epochs=2, **options))[0]
        for kind, options in ((EagerTrainer, {}), (TracedTrainer, {"fuse": True}))
    )
    assert float((fused - eager).norm()) <= 1e-6 * float(eager.norm())


@pytest.mark.parametrize("name", ["branches on the loss", "batch_idx", "skips"])
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    step, reason = STEPS[name]
    with pytest.raises(ClientError, match=f"fuse and compile must be false: .*{reason}"):
        trained(FedAvg(**AVERAGE), lambda: Step(step), TracedTrainer(batch_size=2, local_epochs=2, fuse=True))


def test_what_is_fused() -> None:
    module = Net(mlp(0.0))
    batch = (torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    recorded = record(BoundModel(module), batch, context=contextlib.nullcontext)
    steps = [with_sgd(recorded.graph, range(4), fuse=fuse) for fuse in (False, True)]
    called = [[str(node.target) for node in step.graph.nodes if node.op == "call_function"] for step in steps]
    for name, counts in {"addmm_.default": (0, 2), "addmv_.default": (0, 2), "add_.Tensor": (4, 0)}.items():
        assert tuple(names.count(f"aten.{name}") for names in called) == counts, name


def test_gradients_of_fewer_bits_are_not_fused() -> None:
    """One rounding instead of two would show in bfloat16."""
    module = Net(mlp(0.0)).bfloat16()
    batch = (torch.randn(4, 5, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 0]))
    recorded = record(BoundModel(module), batch, context=contextlib.nullcontext)
    called = [str(node.target) for node in with_sgd(recorded.graph, range(4), fuse=True).graph.nodes]
    assert [called.count(f"aten.{name}") for name in ("addmm_.default", "addmv_.default", "add_.Tensor")] == [0, 0, 4]
