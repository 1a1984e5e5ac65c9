"""A small network and a larger one beside it, which are trained together: for `strategy=fedkd`."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flrl.models.classifier import Batch, Classifier


class Mentored(Classifier):
    """A classifier whose predictions are those of the mentee; its training loss is the sum of both networks'.

    Args:
        mentor: maps inputs `[batch, ...]` to class scores `[batch, num_classes]`; stays with its client.
        mentee: likewise; is sent and averaged.
        num_classes: number of classes.
        optimizer: called with the parameters of both.
        loss: called with (scores, classes); cross-entropy by default.
        scheduler: called with the optimizer; its scheduler steps once per local epoch.
    """

    def __init__(
        self,
        *,
        mentor: nn.Module,
        mentee: nn.Module,
        num_classes: int,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__(
            net=nn.Identity(), num_classes=num_classes, optimizer=optimizer, loss=loss, scheduler=scheduler
        )
        self.mentor, self.mentee = mentor, mentee

    def forward(self, inputs: Tensor) -> Tensor:
        """The mentee's class scores of a batch, `[batch, num_classes]`."""
        scores: Tensor = self.mentee(inputs)
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of both networks' losses on a batch."""
        inputs, classes = batch
        return self.loss(self.mentor(inputs), classes) + self.loss(self.mentee(inputs), classes)
