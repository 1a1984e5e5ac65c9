"""Any net with a second head beside its last layer, for FedRoD.

Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR 2022, arXiv
2107.00778.
"""

from torch import Tensor, nn


class TwoHeads(nn.Module):
    """Scores are those of the net's last dense layer, `generic`, plus those of `personal`, which begins with zeros.

    The personal head's gradient does not reach the layers before it.

    Args:
        net: maps inputs to scores; its last `torch.nn.Linear` becomes the generic head, so it must be its output.

    Raises:
        ValueError: the net has no dense layer.
    """

    def __init__(self, *, net: nn.Module) -> None:
        super().__init__()
        dense = [(name, part) for name, part in net.named_modules() if name and isinstance(part, nn.Linear)]
        if not dense:
            raise ValueError(f"model.net.net: {type(net).__name__} has no torch.nn.Linear to put a second head beside")
        name, last = dense[-1]
        parent, _, own = name.rpartition(".")
        setattr(net.get_submodule(parent), own, nn.Identity())
        self.body, self.generic = net, last
        self.personal = nn.Linear(last.in_features, last.out_features)
        nn.init.zeros_(self.personal.weight)
        nn.init.zeros_(self.personal.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores `[batch, num_classes]`."""
        features = self.body(inputs)
        scores: Tensor = self.generic(features) + self.personal(features.detach())
        return scores
