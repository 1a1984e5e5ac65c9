"""Compiled loops over whole models: one pass over memory where torch's operations make several.

Each has a twin made of torch's or NumPy's operations with the same bits: for other devices, and for runs so short that
loading the compiler takes longer.
"""

from flrl.kernels.codes import rice_code, rice_length
from flrl.kernels.rotation import hadamard
from flrl.kernels.sparse import Large, large_numbers, places_at_least
from flrl.kernels.sums import split_and_add
from flrl.kernels.vectors import VectorStats, difference, inner_product, rounded_difference, scaled, vector_stats

__all__ = [
    "Large",
    "VectorStats",
    "difference",
    "hadamard",
    "inner_product",
    "large_numbers",
    "places_at_least",
    "rice_code",
    "rice_length",
    "rounded_difference",
    "scaled",
    "split_and_add",
    "vector_stats",
]
