"""Adaptive server optimizers: steps computed by hand, and numbers that never change."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flrl.data import TensorSource
from flrl.layout import ParameterLayout
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.strategies.server_optimizers import UncorrectedAdam, Yogi
from flrl.types import Aggregate, ServerState
from tests.toys import blobs, fit, make_worker

UPDATES = [0.5, -0.2, 0.3]
LR, BETA1, BETA2, TAU = 0.1, 0.9, 0.99, 1e-3


def strategy(optimizer: Callable[..., Any], rounds: int = 1) -> FedAvg:
    return FedAvg(rounds=rounds, sampler=AllClients(), server_optimizer=optimizer)


def walked(optimizer: Callable[..., Any]) -> list[float]:
    """The models after the rounds of UPDATES, from zero, in float64."""
    layout = ParameterLayout(nn.Linear(1, 1, bias=False).double())
    state, models = ServerState(0, torch.zeros(1).double()), []
    for update in UPDATES:
        aggregate = Aggregate({"update": torch.tensor([update], dtype=torch.float64)}, 1.0, ())
        state = strategy(optimizer).aggregate(state, aggregate, layout)
        models.append(float(state.vector))
    return models


def by_hand(
    second: Callable[[float, float], float], *, start: float, beta1: float = BETA1, corrected: bool = False
) -> list[float]:
    """Algorithm 2 of Reddi et al., number by number; with Adam's corrections of both moments if asked for."""
    x, m, v, models = 0.0, 0.0, start, []
    for t, update in enumerate(UPDATES, start=1):
        m, v = beta1 * m + (1 - beta1) * update, second(v, update**2)
        first, root = (m / (1 - beta1**t), math.sqrt(v / (1 - BETA2**t))) if corrected else (m, math.sqrt(v))
        x += LR * first / (root + TAU)
        models.append(x)
    return models


def adam(v: float, square: float) -> float:
    return BETA2 * v + (1 - BETA2) * square


def yogi(v: float, square: float) -> float:
    return v - (1 - BETA2) * square * math.copysign(1, v - square)


MOMENTS: dict[str, Any] = {"lr": LR, "betas": (BETA1, BETA2), "eps": TAU}
UNCORRECTED = partial(UncorrectedAdam, **MOMENTS, initial_accumulator=TAU**2)
CORRECTED = partial(torch.optim.Adam, **MOMENTS)
YOGI = partial(Yogi, **MOMENTS, initial_accumulator=TAU**2)
ADAGRAD = partial(torch.optim.Adagrad, lr=LR, eps=TAU)


@pytest.mark.parametrize(("optimizer", "expected"), [
    (UNCORRECTED, by_hand(adam, start=TAU**2)),
    (CORRECTED, by_hand(adam, start=0.0, corrected=True)),
    (YOGI, by_hand(yogi, start=TAU**2)),
    (partial(ADAGRAD, initial_accumulator_value=TAU**2), by_hand(lambda v, g: v + g, start=TAU**2, beta1=0.0)),
    (ADAGRAD, by_hand(lambda v, g: v + g, start=0.0, beta1=0.0)),
], ids=["uncorrected adam", "adam", "yogi", "adagrad", "adagrad from zero"])  # fmt: skip
def test_three_steps_by_hand(optimizer: Any, expected: list[float]) -> None:
    assert walked(optimizer) == pytest.approx(expected, rel=1e-12)


def test_the_first_step_of_each() -> None:
    """An update of 0.5: corrected, Adam's step is lr; uncorrected, it is lr * 0.1 / sqrt(0.01), about as long."""
    assert walked(CORRECTED)[0] == pytest.approx(0.1 * 0.5 / (0.5 + 1e-3), rel=1e-12)
    assert walked(UNCORRECTED)[0] == pytest.approx(0.1 * 0.05 / (math.sqrt(0.99e-6 + 0.0025) + 1e-3), rel=1e-12)
    assert walked(ADAGRAD)[0] == pytest.approx(0.1 * 0.5 / (0.5 + 1e-3), rel=1e-12)


class Dead(TensorSource):
    """Blobs whose first feature is always zero."""

    def __init__(self) -> None:
        source = blobs(90)
        super().__init__(source.inputs * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]), source.targets)


@pytest.mark.parametrize("optimizer", [
    UNCORRECTED, partial(UNCORRECTED, initial_accumulator=0.0), CORRECTED, YOGI,
    partial(YOGI, initial_accumulator=0.0), ADAGRAD,
])  # fmt: skip
def test_weights_of_a_feature_that_is_always_zero_stay(optimizer: Any) -> None:
    worker = make_worker(strategy(optimizer, rounds=3), source=Dead())
    before = worker.model.vector.clone()
    vector: Tensor = fit(worker)[0].vector
    assert bool(torch.isfinite(vector).all())
    columns = slice(0, 15, 5)  # the weights of the first feature
    assert torch.equal(vector[columns], before[columns])
    assert not torch.equal(vector, before)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.RMSprop])
def test_an_optimizer_without_epsilon_is_refused(optimizer: Any) -> None:
    with pytest.raises(ValueError, match=r"^strategy\.server_optimizer\.eps=0: must be positive"):
        strategy(partial(optimizer, eps=0.0))
    strategy(partial(optimizer, eps=1e-8))


@pytest.mark.parametrize("kind", [UncorrectedAdam, Yogi])
@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.0), ("eps", 0.0), ("betas", (0.9, 1.0)), ("initial_accumulator", -1.0)]
)
def test_settings_are_checked(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{kind.__name__} {name}="):
        strategy(partial(kind, **{name: value}))
