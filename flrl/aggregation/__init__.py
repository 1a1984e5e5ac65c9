"""How a round's updates become one: exact sums whose bits do not depend on order or grouping."""

from flrl.aggregation.exact_sum import ExactSum
from flrl.aggregation.weighted_mean import WeightedMean, surveyed

__all__ = ["ExactSum", "WeightedMean", "surveyed"]
