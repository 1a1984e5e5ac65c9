"""FedSAM and FedASAM: clients minimise the worst loss in a neighbourhood, which leads to flat minima.

Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022, arXiv
2206.02618; Caldarola, Caputo, Ciccone, "Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV
2022, arXiv 2203.11834. A step at w is along the gradient at `w + e`, of the same batch: `e = rho * g / |g|` with g the
gradient at w (SAM), or `e = rho * T^2 g / |T g|` (ASAM), where T is `|w| + eta` for parameters whose name ends with
`weight`, and 1 for the others, as in the authors' code.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.devices import Work
from flrl.lightning.local_step import LocalStep
from flrl.strategies.fedavg import FedAvg

_TINY = 1e-12
"""Added to the norm of a gradient, which may be zero."""


class FedSAM(FedAvg):
    """FedAvg with sharpness-aware local steps, for any local optimizer and on every engine.

    A step costs two gradients, and one forward pass for the loss that is reported, which is the one at w. Dropout is
    drawn anew for each, and buffers are those of the forward pass at w.

    Args:
        rho: radius of the neighbourhood, at least 0; 0 is FedAvg.
        adaptive: ASAM instead of SAM.
        eta: added to the size of a weight by ASAM, at least 0.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, rho: float, adaptive: bool = False, eta: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        for name, value in (("rho", rho), ("eta", eta)):
            if not value >= 0:
                raise ValueError(f"strategy.{name}={value}: must be at least 0")
        self.rho, self.adaptive, self.eta = rho, adaptive, eta

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """Two gradients of each batch."""
        return 2 * work.samples(sizes)

    def adjust_loss(self, loss: Tensor, step: LocalStep) -> Tensor:
        """The loss at the neighbour; its gradient is taken as if the way there were constant."""
        gradients, scaled, scales = step.gradients_with(), {}, {}
        for name, parameter in step.parameters.items():
            widened = self.adaptive and name.endswith("weight")
            scales[name] = parameter.detach().abs() + self.eta if widened else torch.ones_like(parameter)
            scaled[name] = scales[name] * gradients[name]
        length = torch.stack([gradient.square().sum() for gradient in scaled.values()]).sum().sqrt()
        reach = self.rho / (length + _TINY)
        return step.loss_with({n: p + reach * scales[n] * scaled[n] for n, p in step.parameters.items()})
