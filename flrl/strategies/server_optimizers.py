"""Server optimizers that torch does not have."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Yogi(Optimizer):
    """Yogi: Adam with an additive second moment.

    Zaheer, Reddi, Sachan, Kale, Kumar, "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018; as in FedYogi of
    Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2: no bias correction, and
    `v <- v - (1 - beta2) * g^2 * sign(v - g^2)`.

    Args:
        params: tensors to step.
        lr: learning rate, positive.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment (tau in the paper), positive.
        initial_accumulator: the second moment before the first step (at least tau^2 in the paper).

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-3,
        initial_accumulator: float = 1e-6,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"Yogi {name}={value}: must be positive")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Yogi betas={tuple(betas)}: each must be at least 0 and below 1")
        if not initial_accumulator >= 0:
            raise ValueError(f"Yogi initial_accumulator={initial_accumulator}: must be at least 0")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "initial_accumulator": initial_accumulator}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all tensors that have a gradient; returns the closure's loss, if there is one."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.full_like(parameter, group["initial_accumulator"])
                gradient, first, second = parameter.grad, state["exp_avg"], state["exp_avg_sq"]
                first.lerp_(gradient, 1 - beta1)
                square = gradient * gradient
                second.addcmul_(square, torch.sign(second - square), value=beta2 - 1)
                parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-group["lr"])
        return loss
