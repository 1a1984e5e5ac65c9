"""Searching for samples whose gradient is the observed one: restarts, L-BFGS and Adam, and priors of images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flrl.attacks.base import Inputs, Progress

Objective = Callable[[], Tensor]
Step = Callable[[int, float], None]
"""Called after an iteration with the number of those done and the objective."""

PATIENCE = 10
GOOD = 100
"""Times its tolerance a search by L-BFGS may end at, stuck, without being repeated."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Where a search has ended.

    Attributes:
        tensors: what was varied.
        loss: the objective there.
        restart: number of the search, from 0.
        iterations: that it took.
    """

    tensors: tuple[Tensor, ...]
    loss: float
    restart: int
    iterations: int

    @property
    def numbers(self) -> dict[str, float]:
        """For `Finding.numbers`."""
        return {"matching_loss": self.loss, "restart": float(self.restart), "iterations": float(self.iterations)}


def best_of(
    search: Callable[[int, Step], Guess], *, restarts: int, iterations: int, tolerance: float, progress: Progress
) -> Guess:
    """The guess with the least objective; the first that is good enough ends the search.

    Restarts run one after another: those that are not needed cost nothing, and `vmap` over eight of them takes as long.

    Args:
        search: runs one restart.
        restarts: number of them.
        iterations: most iterations of each.
        tolerance: an objective below it is good enough that no other restart follows.
        progress: called after each iteration.
    """
    best: Guess | None = None
    for restart in range(restarts):

        def step(done: int, loss: float, restart: int = restart) -> None:
            share = (restart + done / iterations) / restarts
            progress(share, f"restart {restart + 1}/{restarts}, {done}/{iterations}, distance {loss:.2e}")

        found = search(restart, step)
        if best is None or found.loss < best.loss or math.isnan(best.loss):
            best = found
        if best.loss < tolerance:
            break
    assert best is not None
    return best


def lbfgs(
    tensors: Sequence[Tensor], objective: Objective, *, iterations: int, tolerance: float, step: Step
) -> tuple[float, int]:
    """Minimise by L-BFGS with a strong-Wolfe line search, in place.

    Ends early below the tolerance, or when `PATIENCE` iterations have not lowered the objective by a tenth.

    Args:
        tensors: to be varied.
        objective: of them.
        iterations: calls of `torch.optim.LBFGS.step`, each of up to 20 inner iterations, as the DLG paper counts.
        tolerance: an objective below it is good enough.
        step: called after each iteration.

    Returns:
        The objective, infinite if it is no number, and the iterations that were done.
    """
    optimizer = torch.optim.LBFGS(
        tensors,
        lr=1.0,
        history_size=100,
        max_iter=20,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    evaluated = [math.inf]

    def closure() -> float:
        optimizer.zero_grad()
        loss = objective()
        gradients = torch.autograd.grad(loss, list(tensors))
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        evaluated.append(float(loss.detach()))
        return evaluated[-1]

    losses: list[float] = []
    while len(losses) < iterations:
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        losses.append(evaluated[-1])
        step(len(losses), losses[-1])
        stuck = len(losses) > PATIENCE and losses[-1] > 0.9 * losses[-1 - PATIENCE]
        if not math.isfinite(losses[-1]) or losses[-1] < tolerance or stuck:
            break
    return _final(objective), len(losses)


def adam(
    tensors: Sequence[Tensor],
    objective: Objective,
    *,
    lr: float,
    iterations: int,
    signed: bool,
    box: Callable[[], None],
    step: Step,
) -> tuple[float, int]:
    """Minimise by Adam, in place; the rate falls to a tenth after 3/8, 5/8 and 7/8 of the iterations (Geiping et al.).

    Args:
        tensors: to be varied.
        objective: of them.
        lr: learning rate.
        iterations: steps.
        signed: whether only the signs of the gradient count.
        box: called after each step to project the tensors.
        step: called after each iteration.

    Returns:
        The objective, infinite if it is no number, and the number of iterations.
    """
    optimizer = torch.optim.Adam(tensors, lr=lr)
    falls = [iterations * part // 8 for part in (3, 5, 7)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=falls, gamma=0.1)
    for done in range(iterations):
        loss = objective()
        for tensor, gradient in zip(tensors, torch.autograd.grad(loss, list(tensors)), strict=True):
            tensor.grad = gradient.sign() if signed else gradient
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            box()
        step(done + 1, float(loss.detach()))
    return _final(objective), iterations


def _final(objective: Objective) -> float:
    loss = float(objective().detach())
    return loss if math.isfinite(loss) else math.inf


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels down and across, `[n, ..., height, width]`; of others zero."""
    if images.ndim < 4:
        return images.new_zeros(())
    down = images.diff(dim=-2).abs().mean() if images.shape[-2] > 1 else images.new_zeros(())
    across = images.diff(dim=-1).abs().mean() if images.shape[-1] > 1 else images.new_zeros(())
    return down + across


def boxed(samples: Tensor, inputs: Inputs) -> Tensor:
    """Samples with all values in the range that inputs can have; what is no number becomes the lowest."""
    low, high = inputs.low.to(samples.dtype), inputs.high.to(samples.dtype)
    return torch.where(samples.isnan(), low, samples).clamp(low, high)


def check_at_least(name: str, value: float, low: float) -> None:
    """Raise ValueError naming the setting unless it is at least `low`."""
    if not value >= low:
        raise ValueError(f"attack.{name}={value}: must be at least {low}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError naming the setting unless it is positive and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"attack.{name}={value}: must be positive and finite")
