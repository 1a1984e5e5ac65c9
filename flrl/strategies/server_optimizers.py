"""Server optimizers that torch does not have: those of Reddi et al., whose moments' bias is not corrected.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021, arXiv
2003.00295, algorithm 2: `m <- beta1 * m + (1 - beta1) * g` and `x <- x - lr * m / (sqrt(v) + tau)`. Its FedAdagrad is
`torch.optim.Adagrad`, of which the paper's `v` before the first step is `initial_accumulator_value`.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class _Moments(Optimizer):
    """Steps along the first moment over the root of the second one; a subclass says how the second one is renewed.

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
        kind = type(self).__name__
        for name, value in (("lr", lr), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"{kind} {name}={value}: must be positive")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{kind} betas={tuple(betas)}: each must be at least 0 and below 1")
        if not initial_accumulator >= 0:
            raise ValueError(f"{kind} initial_accumulator={initial_accumulator}: must be at least 0")
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "initial_accumulator": initial_accumulator}
        super().__init__(params, defaults)

    @abstractmethod
    def renew(self, second: Tensor, square: Tensor, beta2: float) -> None:
        """Change the second moment in place, given the squared gradient."""

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
                self.renew(second, gradient * gradient, beta2)
                parameter.addcdiv_(first, second.sqrt().add_(group["eps"]), value=-group["lr"])
        return loss


class UncorrectedAdam(_Moments):
    """The paper's FedAdam: `v <- beta2 * v + (1 - beta2) * g^2`; arguments as for `Yogi`."""

    def renew(self, second: Tensor, square: Tensor, beta2: float) -> None:
        """Renew the second moment."""
        second.lerp_(square, 1 - beta2)


class Yogi(_Moments):
    """The paper's FedYogi: Adam with an additive second moment, `v <- v - (1 - beta2) * g^2 * sign(v - g^2)`.

    Zaheer, Reddi, Sachan, Kale, Kumar, "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018.

    Args:
        params: tensors to step.
        lr: learning rate, positive.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment (tau in the paper), positive.
        initial_accumulator: the second moment before the first step (at least tau^2 in the paper).

    Raises:
        ValueError: a setting is out of range.
    """

    def renew(self, second: Tensor, square: Tensor, beta2: float) -> None:
        """Renew the second moment."""
        second.addcmul_(square, torch.sign(second - square), value=beta2 - 1)
