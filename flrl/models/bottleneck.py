"""MID: a variational information bottleneck before a net's last layer, against model inversion.

Wang, Zhang, Zhou, "Improving Robustness to Model Inversion Attacks via Mutual Information Regularization", AAAI 2021,
arXiv 2009.05241, which takes the bottleneck of Alemi et al., "Deep Variational Information Bottleneck", ICLR 2017,
arXiv 1612.00410: the last layer sees z ~ N(mean, std^2), and the loss is loss + beta * KL(N(mean, std^2) || N(0, 1)), a
bound of the mutual information of inputs and predictions.
"""

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """Any net whose last dense layer sees a noisy code instead of its inputs.

    `Classifier` adds the second result of `penalised` to its training loss; while evaluated, the code is its mean.

    Args:
        net: maps inputs to scores; its last `torch.nn.Linear` is replaced, so it must be its output.
        size: numbers of the code.
        beta: weight of the divergence.

    Raises:
        ValueError: a setting is invalid, or the net has no dense layer.
    """

    def __init__(self, *, net: nn.Module, size: int, beta: float) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"model.net.size={size}: must be at least 1")
        if not 0 <= beta < float("inf"):
            raise ValueError(f"model.net.beta={beta}: must be at least 0 and finite")
        name, last = next(
            (
                (name, part)
                for name, part in reversed(list(net.named_modules()))
                if name and isinstance(part, nn.Linear)
            ),
            ("", None),
        )
        if last is None:
            raise ValueError(f"model.net.net: {type(net).__name__} has no torch.nn.Linear to put a bottleneck before")
        parent, _, own = name.rpartition(".")
        setattr(net.get_submodule(parent), own, nn.Identity())
        self.body, self.beta = net, beta
        self.encoder = nn.Linear(last.in_features, 2 * size)
        self.head = nn.Linear(size, last.out_features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores `[batch, num_classes]`."""
        return self.penalised(inputs)[0]

    def penalised(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, and the mean divergence over the batch times beta."""
        mean, raw = self.encoder(self.body(inputs)).chunk(2, dim=1)
        std = nn.functional.softplus(raw - 5, beta=1) + 1e-6  # as Alemi et al. begin: near 0
        code = mean + std * torch.randn_like(std) if self.training else mean
        divergence = (mean.square() + std.square() - 1).sum(1) / 2 - std.log().sum(1)
        return self.head(code), self.beta * divergence.mean()
