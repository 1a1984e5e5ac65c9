"""A LightningModule that predicts next characters, and two nets for it."""

from collections.abc import Callable, Iterable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flrl.models.classifier import Batch, Classifier
from flrl.models.perplexity import Perplexity


class LanguageModel(Classifier):
    """Trains a net on (symbols, next symbols) and logs `{val,test}/{loss,accuracy,perplexity}`, all per symbol.

    A batch is symbols `[batch, length]`, and the next one at every place, `[batch, length]`, or only after the last
    place, `[batch]`, as in LEAF's Shakespeare.

    Args:
        net: maps symbols `[batch, length]`, whole numbers, to scores of the next one at every place,
            `[batch, length, num_classes]`.
        num_classes: number of symbols.
        optimizer: called with the net's trainable parameters.
        loss: called with (scores `[n, num_classes]`, symbols `[n]`); cross-entropy by default.
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
        super().__init__(net=net, num_classes=num_classes, optimizer=optimizer, loss=loss, scheduler=scheduler)
        self.test_perplexity = Perplexity()
        self.val_perplexity = Perplexity()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean loss of a batch's symbols."""
        return self.loss(*self._flat(batch))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, accuracy and perplexity on a batch."""
        self._log("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss, accuracy and perplexity on a batch."""
        self._log("test", batch)

    def _flat(self, batch: Batch) -> Batch:
        """Scores `[n, num_classes]` and targets `[n]` of all that is to be predicted.

        Raises:
            ValueError: samples are no sequences of symbols.
        """
        symbols, targets = batch
        if symbols.is_floating_point() or symbols.ndim != 2:
            raise ValueError(
                "a language model needs samples that are sequences of whole numbers, as dataset=text has them: these "
                f"are {symbols.dtype} of shape {[*symbols.shape[1:]]}"
            )
        scores: Tensor = self(symbols)
        if targets.ndim == 1:
            return scores[:, -1], targets
        return scores.flatten(0, 1), targets.flatten()

    def _log(self, split: str, batch: Batch) -> None:
        scores, targets = self._flat(batch)
        accuracy = self.test_accuracy if split == "test" else self.val_accuracy
        perplexity = self.test_perplexity if split == "test" else self.val_perplexity
        accuracy.update(scores, targets)
        perplexity.update(nn.functional.cross_entropy(scores, targets, reduction="sum"), len(targets))
        self.log(f"{split}/loss", self.loss(scores, targets), on_epoch=True, batch_size=len(targets))
        self.log(f"{split}/accuracy", accuracy, on_epoch=True)
        self.log(f"{split}/perplexity", perplexity, on_epoch=True)


class CharLSTM(nn.Module):
    """The stacked character LSTM of McMahan et al., AISTATS 2017, arXiv 1602.05629, and of LEAF.

    An embedding of 8 numbers, two LSTM layers of 256 units, one dense layer: 819,920 parameters for 80 characters.

    Args:
        num_classes: number of characters.
        embedding: numbers of a character's embedding.
        hidden: units of each layer.
        layers: number of layers.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, *, num_classes: int, embedding: int = 8, hidden: int = 256, layers: int = 2) -> None:
        super().__init__()
        _check(embedding=embedding, hidden=hidden, layers=layers)
        self.embedding = nn.Embedding(num_classes, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, symbols: Tensor) -> Tensor:
        """Scores of the next character at every place, `[batch, length, num_classes]`."""
        states, _ = self.lstm(self.embedding(symbols.long()))
        scores: Tensor = self.output(states)
        return scores


class CharTransformer(nn.Module):
    """A small transformer that sees what came before: pre-norm blocks of causal attention and a GELU layer.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762, with its sinusoidal positions, so that
    texts may have any length; normalised before each part as in GPT-2; without dropout.

    Args:
        num_classes: number of characters.
        width: numbers of a place's vector; even, and divisible by `heads`.
        heads: attention heads of a block.
        layers: number of blocks.

    Raises:
        ValueError: a size is below 1, or `width` cannot be divided.
    """

    def __init__(self, *, num_classes: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        _check(width=width, heads=heads, layers=layers)
        if width % heads or width % 2:
            raise ValueError(f"model.net.width={width}: must be even and divisible by model.net.heads={heads}")
        self.embedding = nn.Embedding(num_classes, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_classes)

    def forward(self, symbols: Tensor) -> Tensor:
        """Scores of the next character at every place, `[batch, length, num_classes]`."""
        vectors = self.embedding(symbols.long())
        scores: Tensor = self.output(self.norm(self.blocks(vectors + _positions(vectors))))
        return scores


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = vectors + self._attention(self.first(vectors))
        changed: Tensor = vectors + self.dense(self.second(vectors))
        return changed

    def _attention(self, vectors: Tensor) -> Tensor:
        query, key, value = self.asked(vectors).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        scores = query @ key.transpose(-1, -2) / sqrt(query.shape[-1])  # [batch, heads, length, length]
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        seen = scores.masked_fill(later, float("-inf")).softmax(-1)
        mixed: Tensor = self.mixed((seen @ value).transpose(1, 2).flatten(2))
        return mixed


def _positions(vectors: Tensor) -> Tensor:
    """Sine and cosine of place / 10000^(2 i / width), `[length, width]`, scaled as an embedding is: mean square 1."""
    length, width = vectors.shape[-2:]
    places = torch.arange(length, device=vectors.device, dtype=vectors.dtype)[:, None]
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=vectors.device, dtype=vectors.dtype) / width)
    return sqrt(2) * torch.cat([(places * rates).sin(), (places * rates).cos()], dim=1)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"model.net.{name}={value}: must be at least 1")
