"""Distances between rows, and what several rules make of them."""

import torch
from torch import Tensor

_COLUMNS = 2**16


def squared_distances(values: Tensor) -> Tensor:
    """The squared Euclidean distance of each row of `[n, d]` from each other one, `[n, n]`; 0 from itself."""
    products = values.new_zeros(len(values), len(values))
    for part in torch.split(values, _COLUMNS, dim=1):
        products += part @ part.t()
    squares = products.diagonal()
    found = (squares[:, None] + squares[None, :] - products - products.t()).clamp_(min=0)
    return found.fill_diagonal_(0.0)


def nearest(distances: Tensor, count: int) -> Tensor:
    """Of each row of `[n, n]`, the places of the `count` nearest rows, itself among them, `[n, count]`."""
    return distances.argsort(dim=1, stable=True)[:, :count]
