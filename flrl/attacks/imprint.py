"""Reads the samples out of an update that was trained from an imprinted model, without any search.

Fowl, Geiping, Czaja, Goldblum, Goldstein, "Robbing the Fed: Directly Obtaining Private Data in Federated Learning with
Modified Models", ICLR 2022, arXiv 2110.13057. `adversary=server_imprint` makes the model: neurons i and i + 1 of its
first layer differ in their gradients by the samples between their thresholds. Where a bin holds one sample, that is
`(dL/dW[i] - dL/dW[i + 1]) / (dL/db[i] - dL/db[i + 1])`; where it holds several, this is a mixture of them. Of n samples
in k bins of equal probability about `n (1 - 1/k)^(n - 1)` are alone. It holds for a gradient, for one step, and for the
mean over a cohort; after several steps of FedAvg neurons have drifted apart, and it holds approximately where the
learning rate is small.
"""

import torch
from torch import Tensor

from flrl.attacks.base import Attack, Finding, Observation, Progress


class Imprint(Attack):
    """Gives the content of each bin that holds anything.

    Args:
        tolerance: a bin is empty where the difference of biases' gradients is below this share of the largest one.

    Raises:
        ValueError: `tolerance` is out of range.
    """

    knows = "A malicious server has sent a model with an imprint layer, and sees the update of a client or of a cohort."
    source = "Fowl et al., ICLR 2022, arXiv 2110.13057"
    on_sums = True

    def __init__(self, *, tolerance: float = 1e-3) -> None:
        if not 0 <= tolerance < 1:
            raise ValueError(f"attack.tolerance={tolerance}: must be at least 0 and below 1")
        self.tolerance = tolerance

    def objection(self, observation: Observation) -> str | None:
        """What was sent must have an imprint."""
        reason = super().objection(observation)
        if reason is not None:
            return reason
        entries = observation.layout.entries[:3]
        sizes = torch.Size(observation.inputs.shape).numel()
        shapes = [entry.shape for entry in entries]
        fits = [len(shape) for shape in shapes] == [2, 1, 2] and shapes[0][1] == sizes and shapes[2][1] == shapes[0][0]
        if fits:
            first, bias, second = (observation.sent[entry.slice].view(entry.shape) for entry in entries)
            fits = bool((first == first[0]).all() and (second == second[:, :1]).all() and (bias.diff() <= 0).all())
        return None if fits else "the model that was sent has no imprint: the run needs adversary=server_imprint"

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """One input for each bin that is not empty."""
        weight, bias = observation.layout.entries[:2]
        change = observation.update
        found = binned(change[weight.slice].view(weight.shape), change[bias.slice], self.tolerance)
        progress(1.0, "")
        inputs = found.view(-1, *observation.inputs.shape).to(observation.inputs.dtype)
        return Finding(inputs=inputs, numbers={"bins": float(weight.shape[0]), "bins_filled": float(len(inputs))})


def binned(weights: Tensor, biases: Tensor, tolerance: float) -> Tensor:
    """The content of all bins that are not empty, `[n, d]`.

    Args:
        weights: gradients of the imprint layer's weights, or anything proportional to them, `[bins, d]`.
        biases: likewise of its bias, `[bins]`.
        tolerance: as for `Imprint`.

    Example:
        Samples (1, 2) in the first bin and (3, 4) in the last one, with derivatives 1 and 2:

        >>> binned(torch.tensor([[7.0, 10.0], [6.0, 8.0], [6.0, 8.0]]), torch.tensor([3.0, 2.0, 2.0]), 1e-3)
        tensor([[1., 2.],
                [3., 4.]])
    """
    above = torch.zeros(1, dtype=biases.dtype)
    differences = -torch.cat([biases, above]).diff()
    rows = -torch.cat([weights, weights.new_zeros(1, weights.shape[1])]).diff(dim=0)
    filled = differences.abs() > tolerance * differences.abs().max()
    return rows[filled] / differences[filled, None]
