"""Distances between rows, and what several rules make of them."""

import torch
from torch import Tensor

from flrl.aggregation.columns import columns_of


def inner_products(values: Tensor, places: Tensor | None = None) -> Tensor:
    """The inner product of each two rows of `[n, d]`, or of those at `places`, `[n, n]`."""
    products = values.new_zeros(len(values), len(values))
    for part in columns_of(values, places):
        products += part @ part.t()
    return products


def squared_distances(values: Tensor, places: Tensor | None = None) -> Tensor:
    """The squared Euclidean distance of each row of `[n, d]`, or of those at `places`, from each other one, `[n, n]`.

    It is 0 from itself.
    """
    products = inner_products(values, places)
    squares = products.diagonal()
    found = (squares[:, None] + squares[None, :] - products - products.t()).clamp_(min=0)
    return found.fill_diagonal_(0.0)


def cosine_distances(values: Tensor) -> Tensor:
    """One minus the cosine of each two rows of `[n, d]`, `[n, n]` in [0, 2]; 1 from a zero row, 0 from itself."""
    norms = values.norm(dim=1)
    factors = torch.where(norms > 0, 1 / norms, 0.0)
    cosines = inner_products(values) * factors[:, None] * factors[None, :]
    return (1 - (cosines + cosines.t()) / 2).clamp_(0.0, 2.0).fill_diagonal_(0.0)


def nearest(distances: Tensor, count: int) -> Tensor:
    """Of each row of `[n, n]`, the places of the `count` nearest rows, itself among them, `[n, count]`."""
    return distances.argsort(dim=1, stable=True)[:, :count]
