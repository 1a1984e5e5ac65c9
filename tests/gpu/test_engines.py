"""Every engine trains and is evaluated on the device, close to what it does on a CPU, and twice to the same bits."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from flrl.layout import digest
from flrl.strategies import Ditto, FedAvg, FedProx, FedRep, FedSGD, Moon, Scaffold, Strategy
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer
from tests.toys import Convolved, fit, make_worker
from tests.trainers.nets import AVERAGE, MODULES, SIZES, Attentive, Embedded, Net, mlp

pytestmark = pytest.mark.gpu

ENGINES: dict[str, Callable[..., Any]] = {
    "eager": EagerTrainer,
    "lightning": LightningTrainer,
    "traced": TracedTrainer,
    "traced, fused": partial(TracedTrainer, fuse=True),
    "vectorized": VectorizedTrainer,
}
# None of them draws random numbers: those of a GPU are others than a CPU's.
NETS: dict[str, Callable[[], pl.LightningModule]] = {
    "dense": lambda: Net(mlp(0.0)),
    "convolution": Convolved,
    "batch norm": lambda: Net(MODULES["batch norm"]()),
    "attention": lambda: Net(Attentive()),
    "lookup": lambda: Net(Embedded()),
    "adam": lambda: Net(mlp(0.0), partial(torch.optim.Adam, lr=0.01)),
}
NOT_VECTORIZED = ("batch norm",)
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedprox": partial(FedProx, mu=0.3, **AVERAGE),
    "scaffold": partial(Scaffold, **AVERAGE),
    "scaffold 1": partial(Scaffold, option=1, **AVERAGE),
    "fedsgd": partial(FedSGD, **AVERAGE),
    "fedbn": partial(FedAvg, personal=["net.3.*"], **AVERAGE),
    "ditto": partial(Ditto, lam=0.3, **AVERAGE),
    "fedrep": partial(FedRep, head_epochs=2, personal=["net.3.*"], **AVERAGE),
    "moon": partial(Moon, layer="net.1", mu=1.0, **AVERAGE),
}
ROUNDING = 1e-4
"""Of a training's whole change: some twenty steps in float32, each of which rounds a thousand times finer than that."""
HALF = 0.1
"""Likewise in bfloat16, which rounds each product to 2^-8 of itself."""


class Result:
    """What a training on a device ended with."""

    def __init__(
        self,
        trainer: Any,
        device: str,
        *,
        net: Callable[[], pl.LightningModule] = NETS["dense"],
        strategy: Callable[[], Strategy] | None = None,
    ) -> None:
        torch.manual_seed(0)
        made = FedAvg(**AVERAGE) if strategy is None else strategy()
        worker = make_worker(made, module=net(), trainer=trainer, sizes=SIZES, device=device)
        assert worker.model.local.device.type == torch.device(device).type
        before = worker.model.vector.detach().cpu().clone()
        self.state, self.history = fit(worker)
        self.change = self.state.vector.cpu() - before
        kept = [tensor for memory in self.state.memory.values() for tensor in memory.values()]
        assert all(tensor.device.type == "cpu" for tensor in (self.state.vector, *kept))
        self.digests = [record.digest for record in self.history]

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers of the last round but times."""
        return {name: value for name, value in self.history[-1].metrics.items() if not name.startswith("time/")}


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check_close(found: Result, expected: Result, limit: float) -> None:
    assert far(found.change, expected.change) <= limit
    for name, value in expected.metrics.items():
        # A sample near the border between two classes may be on its other side.
        assert found.metrics[name] == pytest.approx(value, rel=limit, abs=0.05 if "accuracy" in name else 1e-6), name
    assert found.metrics.keys() == expected.metrics.keys()
    assert {"train/loss", "test/loss", "test/accuracy"} <= found.metrics.keys()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_does_on_the_device_what_a_cpu_does(engine: str, net: str, device: str) -> None:
    if engine == "vectorized" and net in NOT_VECTORIZED:
        pytest.skip("refused on every device")
    expected = Result(EagerTrainer(batch_size=8), "cpu", net=NETS[net])
    check_close(Result(ENGINES[engine](batch_size=8), device, net=NETS[net]), expected, ROUNDING)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_strategies_and_what_clients_remember(engine: str, strategy: str, device: str) -> None:
    expected = Result(EagerTrainer(batch_size=8), "cpu", strategy=STRATEGIES[strategy])
    found = Result(ENGINES[engine](batch_size=8), device, strategy=STRATEGIES[strategy])
    check_close(found, expected, ROUNDING)
    assert list(found.state.memory) == list(expected.state.memory)
    for client, memory in expected.state.memory.items():
        for name, tensor in memory.items():
            torch.testing.assert_close(found.state.memory[client][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_is_that_of_the_eager_engine_on_the_same_device(engine: str, device: str) -> None:
    eager, found = (
        Result(make(batch_size=8), device, net=lambda: Net(mlp())) for make in (EagerTrainer, ENGINES[engine])
    )
    check_close(found, eager, ROUNDING)


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_is_close_to_float32(engine: str, device: str) -> None:
    whole = Result(ENGINES[engine](batch_size=8), device)
    half = Result(ENGINES[engine](batch_size=8, precision="bf16-mixed"), device)
    assert 0 < far(half.change, whole.change) <= HALF


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_the_optimizers_state_is_kept_between_rounds(engine: str, device: str) -> None:
    def run(make: Callable[..., Any], where: str) -> Result:
        return Result(make(batch_size=8, keep_optimizer_state=True), where, net=NETS["adam"])

    check_close(run(ENGINES[engine], device), run(EagerTrainer, "cpu"), ROUNDING)


def digests(device: str) -> dict[str, list[str]]:
    """Those of every engine and round, dropout and client memory included."""
    torch.set_num_threads(1)
    scaffold = partial(Scaffold, **AVERAGE)
    results = {
        name: Result(make(batch_size=8), device, net=lambda: Net(mlp()), strategy=scaffold)
        for name, make in ENGINES.items()
    }
    memory = {
        name: [digest(found.state.memory[client]["control"]) for client in found.state.memory]
        for name, found in results.items()
    }
    return {name: found.digests + memory[name] for name, found in results.items()}


def test_digests_are_the_same_again_and_in_another_process(device: str) -> None:
    found = digests(device)
    assert digests(device) == found
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(digests, (device,)) == found
