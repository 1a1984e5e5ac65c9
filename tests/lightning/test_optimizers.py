"""Learning rates and what schedulers start from, scaled; an optimizer's state, kept and given back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR

from flrl.lightning.optimizers import optimizer_tensors, parse_optimizers, restore_optimizer, scale_learning_rates

SCHEDULES: dict[str, Callable[[SGD], Any]] = {
    "step": lambda optimizer: schedules.StepLR(optimizer, 2, 0.5),
    "lambda": lambda optimizer: schedules.LambdaLR(optimizer, lambda step: 0.9**step),
    "cosine": lambda optimizer: schedules.CosineAnnealingLR(optimizer, 4, eta_min=0.02),
    "restarts": lambda optimizer: schedules.CosineAnnealingWarmRestarts(optimizer, 3, eta_min=0.02),
    "one cycle": lambda optimizer: schedules.OneCycleLR(optimizer, max_lr=0.4, total_steps=10, cycle_momentum=False),
    "three phases": lambda optimizer: schedules.OneCycleLR(
        optimizer, max_lr=0.4, total_steps=10, cycle_momentum=False, three_phase=True, anneal_strategy="linear"
    ),
    "cyclic": lambda optimizer: schedules.CyclicLR(optimizer, 0.1, 0.5, step_size_up=3, cycle_momentum=False),
    "in sequence": lambda optimizer: schedules.SequentialLR(
        optimizer,
        [schedules.ConstantLR(optimizer, 0.5, 2), schedules.CyclicLR(optimizer, 0.1, 0.5, 3, cycle_momentum=False)],
        milestones=[2],
    ),
    "averaging": lambda optimizer: SWALR(optimizer, swa_lr=0.05, anneal_epochs=4),
    "chained": lambda optimizer: schedules.ChainedScheduler(
        [schedules.ExponentialLR(optimizer, 0.9), schedules.ConstantLR(optimizer, 0.5, 2)], optimizer
    ),
}


def rates(make: Callable[[SGD], Any], factor: float) -> list[list[float]]:
    """The learning rates of two groups over ten steps."""
    tensors = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = SGD([{"params": tensors[:1]}, {"params": tensors[1:], "lr": 0.3}], lr=0.2)
    _, steps = parse_optimizers(([optimizer], [make(optimizer)]))
    scale_learning_rates(optimizer, steps, factor)
    seen = []
    for _ in range(9):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        steps[0].scheduler.step()
    return seen


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_scaled_schedule_is_the_schedule_scaled(make: Callable[[SGD], Any]) -> None:
    plain, scaled = rates(make, 1.0), rates(make, 0.25)
    for before, after in zip(plain, scaled, strict=True):
        assert after == pytest.approx([0.25 * rate for rate in before], rel=1e-12)


def test_one_cycle_by_hand() -> None:
    """From max_lr / 25 up to max_lr in two steps, then down to max_lr / 25e4 in seven, all halved."""
    made = rates(
        lambda optimizer: schedules.OneCycleLR(
            optimizer, max_lr=0.4, total_steps=10, cycle_momentum=False, anneal_strategy="linear"
        ),
        0.5,
    )
    assert [rate for rate, _ in made[:4]] == pytest.approx([0.008, 0.104, 0.2, 0.2 - (0.2 - 0.2 / 25e4) / 7])


def test_an_optimizers_state_is_kept_and_given_back_as_copies() -> None:
    def step(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> None:
        parameter.grad = torch.tensor([2.0])
        optimizer.step()

    first, second = (torch.zeros(1, requires_grad=True) for _ in range(2))
    source = torch.optim.Adam([first], lr=0.5)
    step(source, first)
    kept = optimizer_tensors(source, prefix="own/")
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {
        "own/0/step": 1.0,
        "own/0/exp_avg": [pytest.approx(0.2)],
        "own/0/exp_avg_sq": [pytest.approx(0.004)],
    }
    target = torch.optim.Adam([second], lr=0.25)
    restore_optimizer(target, {**kept, "other/0/step": torch.tensor(9.0)}, prefix="own/")
    assert target.param_groups[0]["lr"] == 0.25
    step(target, second)
    assert float(target.state[second]["step"]) == 2.0
    assert float(target.state[second]["exp_avg"]) == pytest.approx(0.9 * 0.2 + 0.1 * 2.0)
    assert float(kept["own/0/step"]) == 1.0  # what was kept is nobody's but its own
    assert float(kept["own/0/exp_avg"]) == pytest.approx(0.2)
    step(source, first)
    assert float(kept["own/0/step"]) == 1.0
