"""A LightningModule for regression: any net, loss, optimizer and scheduler."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flrl.models.classifier import Batch
from flrl.models.one_net import OneNet


class Regressor(OneNet):
    """Trains a net on (inputs, numbers) batches and logs `{val,test}/{loss,mse,mae}`.

    Args:
        net: maps inputs `[batch, ...]` to predictions, as many as the batch has targets: `[batch, 1]` for targets
            `[batch]`.
        optimizer: called with the net's trainable parameters.
        loss: called with (predictions, targets) of the targets' shape; the mean squared error by default.
        scheduler: called with the optimizer; its scheduler steps once per local epoch.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        loss = nn.functional.mse_loss if loss is None else loss
        super().__init__(net=net, optimizer=optimizer, loss=loss, scheduler=scheduler)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss on a batch."""
        return self.loss(*self._pair(batch))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, mean squared and mean absolute error on a batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, mean squared and mean absolute error on a batch."""
        self._evaluate("test", batch)

    def _pair(self, batch: Batch) -> Batch:
        """Predictions and targets of one shape.

        Raises:
            ValueError: targets are classes, or the net predicts another number of them.
        """
        inputs, targets = batch
        predictions = self(inputs)
        if not targets.is_floating_point() or predictions.numel() != targets.numel():
            raise ValueError(
                f"a regression needs targets that are floating-point numbers, one for each prediction: it has "
                f"{targets.dtype} of shape {[*targets.shape]} for predictions of shape {[*predictions.shape]}"
            )
        return predictions.reshape(targets.shape), targets

    def _evaluate(self, split: str, batch: Batch) -> None:
        predictions, targets = self._pair(batch)
        options: dict[str, Any] = {"on_epoch": True, "batch_size": len(targets)}
        self.log(f"{split}/loss", self.loss(predictions, targets), **options)
        self.log(f"{split}/mse", nn.functional.mse_loss(predictions, targets), **options)
        self.log(f"{split}/mae", nn.functional.l1_loss(predictions, targets), **options)
