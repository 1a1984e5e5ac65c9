"""Federated averaging: clients train locally, the server takes an optimizer step along their mean update.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629. With another server optimizer than SGD at learning rate 1 it is FedOpt: Reddi,
Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from flrl.layout import ParameterLayout
from flrl.lightning.optimizers import optimizer_tensors, restore_optimizer
from flrl.strategies.base import Strategy
from flrl.types import Aggregate, ServerState


class FedAvg(Strategy):
    """Averages the clients' updates; minus their mean is the gradient of a torch optimizer on the server.

    The optimizer steps the trainable part, in float64; buffers (BatchNorm's statistics) are averaged. The result is
    rounded to the model's dtype once a round.

    Args:
        server_optimizer: called with a list of one tensor; `torch.optim.SGD` with `lr=1.0` is plain averaging.
        options: as for `Strategy`.

    Raises:
        ValueError: a setting is invalid; an optimizer may raise other errors for its own settings.
    """

    def __init__(self, *, server_optimizer: Callable[[list[torch.Tensor]], Optimizer], **options: Any) -> None:
        super().__init__(**options)
        self.server_optimizer = server_optimizer
        made = self.server_optimizer([torch.zeros(1, requires_grad=True)])  # an invalid setting raises here
        if made.defaults.get("eps") == 0:  # 0 / 0 where no client has a gradient, as of a pixel that is always black
            raise ValueError("strategy.server_optimizer.eps=0: must be positive, or unused parameters become NaN")

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """One optimizer step on the pseudo-gradient."""
        stepped, averaged = slice(layout.num_trainable), slice(layout.num_trainable, None)
        mean, vector = aggregate.vectors["update"], state.vector.to(torch.float64, copy=True)
        trainable = vector[stepped].requires_grad_()  # a view: the optimizer steps the vector itself
        trainable.grad = -mean[stepped]
        optimizer = self.server_optimizer([trainable])
        restore_optimizer(optimizer, state.optimizer, prefix="")
        optimizer.step()
        vector[averaged].add_(mean[averaged])
        return replace(state, vector=vector.to(layout.dtype), optimizer=optimizer_tensors(optimizer, prefix=""))
