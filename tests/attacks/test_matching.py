"""The searches on functions whose minima are known; priors by hand."""

import math

import pytest
import torch

from flrl.attacks.base import Inputs
from flrl.attacks.matching import Guess, adam, best_of, boxed, lbfgs, total_variation


def test_lbfgs_finds_a_minimum_and_ends_early() -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    wanted = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    steps: list[int] = []
    loss, done = lbfgs(
        [x],
        lambda: ((x - wanted) ** 4 + (x - wanted) ** 2).sum(),
        iterations=50,
        tolerance=1e-12,
        step=lambda number, _: steps.append(number),
    )
    assert loss < 1e-12
    assert done == len(steps) == steps[-1] < 5
    assert torch.allclose(x.detach(), wanted, atol=1e-5)


def test_lbfgs_gives_up_when_stuck() -> None:
    x = torch.ones(1, requires_grad=True)
    loss, done = lbfgs([x], lambda: 1 + 0 * x.sum(), iterations=300, tolerance=1e-9, step=lambda *_: None)
    assert (loss, done) == (1.0, 11)
    loss, done = lbfgs([x], lambda: x.sum() * math.nan, iterations=300, tolerance=1e-9, step=lambda *_: None)
    assert (loss, done) == (math.inf, 1)


def test_adam_takes_signs_lowers_its_rate_and_projects() -> None:
    x = torch.zeros(2, requires_grad=True)
    seen: list[list[float]] = []

    def box() -> None:
        x.clamp_(max=0.35)
        seen.append(x.tolist())

    loss, done = adam(
        [x], lambda: -(x * torch.tensor([1.0, 1000.0])).sum(), lr=0.1, iterations=8, signed=True, box=box,
        step=lambda *_: None,
    )  # fmt: skip
    assert [pair[0] for pair in seen[:3]] == pytest.approx([0.1, 0.2, 0.3], abs=1e-5)
    assert [pair[0] for pair in seen[3:6]] == pytest.approx([0.31, 0.32, 0.321], abs=1e-5)
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    assert done == 8
    assert loss == pytest.approx(-1001 * seen[-1][0])


def test_the_best_restart_is_kept_and_a_good_one_ends() -> None:
    losses = [math.inf, 3.0, 1.0, 2.0, 0.5]
    shares: list[float] = []

    def search(restart: int, step: object) -> Guess:
        step(5, losses[restart])  # type: ignore[operator]
        return Guess((), losses[restart], restart, 10)

    def run(restarts: int, tolerance: float) -> Guess:
        return best_of(
            search,
            restarts=restarts,
            iterations=10,
            tolerance=tolerance,
            progress=lambda share, _: shares.append(share),
        )

    assert run(4, 0.1).restart == 2
    assert shares == [0.125, 0.375, 0.625, 0.875]
    assert run(5, 1.5).restart == 2
    assert len(shares) == 7
    assert run(1, 1.0).numbers == {"matching_loss": math.inf, "restart": 0.0, "iterations": 10.0}


def test_total_variation_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [3.0, 5.0]]]])
    assert float(total_variation(image)) == (3 + 4) / 2 + (1 + 2) / 2
    assert float(total_variation(torch.ones(2, 3, 4, 5))) == 0
    assert float(total_variation(torch.rand(2, 3))) == 0


def test_the_box() -> None:
    inputs = Inputs((2, 1), torch.float32, torch.tensor([[0.0], [-1.0]]), torch.tensor([[1.0], [0.5]]), 2)
    found = boxed(torch.tensor([[[2.0], [2.0]], [[-3.0], [math.nan]]]), inputs)
    assert found.tolist() == [[[1.0], [0.5]], [[0.0], [-1.0]]]
