"""A LightningModule that classifies: any net, loss, optimizer and scheduler."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from flrl.models.one_net import OneNet

Batch = tuple[Tensor, Tensor]


class Classifier(OneNet):
    """Trains a net on (inputs, class) batches and logs `{train,val,test}/{loss,accuracy}`.

    Args:
        net: maps inputs `[batch, ...]` to class scores `[batch, num_classes]`; if it has a method `penalised`, that
            also returns a scalar, which is added to the loss it is trained with.
        num_classes: number of classes.
        optimizer: called with the net's trainable parameters.
        loss: called with (scores, classes); cross-entropy by default, which is log-softmax and negative log-likelihood.
        scheduler: called with the optimizer; its scheduler steps once per local epoch.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        num_classes: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        loss = nn.functional.cross_entropy if loss is None else loss
        super().__init__(net=net, optimizer=optimizer, loss=loss, scheduler=scheduler)
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss on a batch."""
        inputs, classes = batch
        penalised: Callable[[Tensor], tuple[Tensor, Tensor]] | None = getattr(self.net, "penalised", None)
        if penalised is None:
            return self.loss(self(inputs), classes)
        scores, penalty = penalised(inputs)
        loss: Tensor = self.loss(scores, classes) + penalty
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy on a batch."""
        self._evaluate("val", batch, self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy on a batch."""
        self._evaluate("test", batch, self.test_accuracy)

    def _evaluate(self, split: str, batch: Batch, accuracy: MulticlassAccuracy) -> None:
        inputs, classes = batch
        scores = self(inputs)
        accuracy.update(scores, classes)
        self.log(f"{split}/loss", self.loss(scores, classes), on_epoch=True, batch_size=len(classes))
        self.log(f"{split}/accuracy", accuracy, on_epoch=True)
