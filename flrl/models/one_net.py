"""What LightningModules of one net share: the net, its loss, optimizer and scheduler."""

from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class OneNet(pl.LightningModule):
    """Base class of modules that train one net; a subclass defines the steps.

    Args:
        net: the net.
        optimizer: called with the net's trainable parameters.
        loss: called with (outputs, targets).
        scheduler: called with the optimizer; its scheduler steps once per local epoch.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self._optimizer = optimizer
        self._scheduler = scheduler

    def forward(self, inputs: Tensor) -> Tensor:
        """The net's outputs."""
        outputs: Tensor = self.net(inputs)
        return outputs

    def configure_optimizers(self) -> Any:
        """The optimizer, and the scheduler if there is one.

        Raises:
            ValueError: the optimizer refuses a setting.
        """
        try:
            optimizer = self._optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        except ValueError as error:
            raise ValueError(f"model.optimizer: {error}") from error
        return optimizer if self._scheduler is None else ([optimizer], [self._scheduler(optimizer)])
