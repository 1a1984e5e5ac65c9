"""Modules of odd shape: in what they are made of, what they take and return, and how they are optimized."""

from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from pytorch_lightning.demos import boring_classes, transformer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from tests.toys import Late, Linear, Rich


class Net(Linear):
    """A net of one's own."""

    def __init__(self, net: nn.Module, lr: float = 0.1) -> None:
        super().__init__(lr=lr)
        self.net = net  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class Tied(Net):
    """One weight under two names."""

    def __init__(self) -> None:
        first, second = nn.Linear(5, 5), nn.Linear(5, 5)
        second.weight = first.weight
        super().__init__(nn.Sequential(first, nn.Tanh(), second, nn.Linear(5, 3)))


class FromDict(Linear):
    """Batches are dicts."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch["x"]), batch["label"])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", nn.functional.cross_entropy(self.net(batch["x"]), batch["label"]))


class FromTriple(Linear):
    """Batches hold inputs, classes and weights."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, weights = batch
        return (nn.functional.cross_entropy(self.net(x), y, reduction="none") * weights).mean()


class OneCycle(Linear):
    """A schedule over all steps, known from the Trainer."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=max(2, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Averaged(Linear):
    """An exponential average of the weights in a buffer, changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", self.net.weight.detach().clone())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.average.mul_(0.9).add_(self.net.weight.detach(), alpha=0.1)


class Frozen(Net):
    """A frozen backbone under a head."""

    def __init__(self) -> None:
        backbone = nn.Sequential(nn.Linear(5, 8), nn.ReLU()).requires_grad_(False)
        super().__init__(nn.Sequential(backbone, nn.Linear(8, 3)))


class Adapted(Linear):
    """A frozen layer with a trained matrix of low rank beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.net.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(5, 2) / 3), nn.Parameter(torch.zeros(2, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]) + batch[0] @ self.down @ self.up, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)


class Double(Linear):
    """Computes in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0].double()), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step((batch[0].double(), batch[1]), batch_idx)


class Attention(nn.Module):
    """Five tokens, mixed by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.norm, self.outward = nn.Linear(1, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.inward(x[..., None]))
        return self.outward(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    """Takes the features one after the other."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.layer, self.outward = kind(1, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.layer(x[..., None])[0][:, -1])


class Mobile(Net):
    """A small MobileNet on small images."""

    def __init__(self) -> None:
        super().__init__(torchvision.models.mobilenet_v3_small(num_classes=3), lr=0.01)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((_images(batch[0]), batch[1]), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step((_images(batch[0]), batch[1]), batch_idx)


def _images(x: Tensor) -> Tensor:
    return x[:, :1, None, None].expand(-1, 3, 32, 32)


@dataclass
class Output:
    """What a model of a hub returns."""

    loss: Tensor
    logits: Tensor


class Hub(Linear):
    """Its forward computes the loss and returns an object."""

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        logits = self.net(x)
        return Output(nn.functional.cross_entropy(logits, labels), logits)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        output = self(*batch)
        return {"loss": output.loss, "logits": output.logits}


class Accumulating(Linear):
    """Adds up the gradients of two batches, by hand."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


class Manual(Linear):
    """Optimizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Two(Linear):
    """Two optimizers."""

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([self.net.weight], lr=0.1), torch.optim.Adam([self.net.bias])]


class Measured(Linear):
    """A torchmetrics object over the test set."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy(self.net(batch[0]), batch[1])
        self.log("test/accuracy", self.accuracy)


class Saving(Linear):
    """Keeps its hyperparameters."""

    def __init__(self, hidden: int = 8, rate: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Linear(hidden, 3))  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["rate"])


class MadeLate(Late):
    """Builds its layers in `configure_model`."""

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))  # type: ignore[assignment]


class Keeping(Linear):
    """Keeps its optimizer as an attribute."""

    def configure_optimizers(self) -> Any:
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return self.optimizer


class Penalised(Linear):
    """Its loss has a penalty of the weights, and it logs in many ways."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx) + 0.01 * self.net.weight.abs().sum()
        self.log("penalty", self.net.weight.abs().sum(), prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict({"a": loss, "b": loss * 2})
        return loss


class Skipping(Linear):
    """Returns nothing for some batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class Language(transformer.LightningTransformer):
    """Lightning's own language model, small, on rounded numbers."""

    def __init__(self) -> None:
        super().__init__(vocab_size=12)
        self.model = transformer.Transformer(vocab_size=12, ninp=8, nhead=2, nhid=8, nlayers=1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(_words(batch), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        words, following = _words(batch)
        self.log("test/loss", nn.functional.nll_loss(self(words, following), following.view(-1)))


def _words(batch: Any) -> tuple[Tensor, Tensor]:
    words = (3 * batch[0]).round().long().clamp(0, 11)
    return words[:, :4].contiguous(), words[:, 1:].contiguous()


class Boring(boring_classes.BoringModel):
    """Lightning's boring model as it is."""


class Demo(boring_classes.DemoModel):
    """Lightning's demonstration."""

    def __init__(self) -> None:
        super().__init__(out_dim=3)
        self.l1 = nn.Linear(5, 3)

    def training_step(self, batch: Any, batch_nb: int) -> Any:
        return super().training_step(batch, batch_nb)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


__all__ = ["Linear", "Rich"]
