"""A net with room for an imprint before it: a dense layer, a ReLU and a dense layer beside a path that leaves inputs.

Fowl et al., "Robbing the Fed", ICLR 2022, arXiv 2110.13057: a malicious server may also choose the architecture, and
puts such a block before a net that does not begin with dense layers. `adversary=server_imprint` makes the imprint in
it; the client computes `net(inputs + block(inputs))`.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn


class WithImprintLayer(nn.Module):
    """Any net after a block of two dense layers, which at first adds nothing to the inputs.

    Args:
        net: maps inputs to scores.
        input_shape: of one sample.
        bins: neurons of the block, that is samples that it can hold apart at most.

    Raises:
        ValueError: `bins` is below 2.
    """

    def __init__(self, *, net: nn.Module, input_shape: Sequence[int], bins: int) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"model.net.bins={bins}: must be at least 2")
        size = prod(input_shape)
        self.block = nn.Sequential(nn.Flatten(), nn.Linear(size, bins), nn.ReLU(), nn.Linear(bins, size))
        for parameter in self.block[3].parameters():
            nn.init.zeros_(parameter)
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores `[batch, num_classes]`."""
        scores: Tensor = self.net(inputs + self.block(inputs).view_as(inputs))
        return scores
