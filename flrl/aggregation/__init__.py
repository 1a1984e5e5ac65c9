"""Rules that aggregate a round's updates. A new rule is a file like `median.py`; see `rows.py` for its base class."""

from flrl.aggregation.base import Aggregator, Parcel, Reducer, stats_of
from flrl.aggregation.exact_sum import ExactSum
from flrl.aggregation.mean import Mean, MeanReducer
from flrl.aggregation.median import Median
from flrl.aggregation.rows import RowRule, RowsReducer
from flrl.aggregation.trimmed_mean import TrimmedMean

__all__ = [
    "Aggregator",
    "ExactSum",
    "Mean",
    "MeanReducer",
    "Median",
    "Parcel",
    "Reducer",
    "RowRule",
    "RowsReducer",
    "TrimmedMean",
    "stats_of",
]
