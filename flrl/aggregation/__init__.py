"""Rules that aggregate a round's updates. A new rule is a file like `median.py`; see `rows.py` for its base class."""

from flrl.aggregation.around import Meamed, Phocas
from flrl.aggregation.base import Aggregator, Combined, Parcel, Reducer, merged, stats_of
from flrl.aggregation.before import ARC, NNM, Bucketing, Clip
from flrl.aggregation.bulyan import Bulyan
from flrl.aggregation.centered_clipping import CenteredClipping
from flrl.aggregation.dnc import DnC
from flrl.aggregation.every_update import EveryUpdate
from flrl.aggregation.exact_sum import ExactSum
from flrl.aggregation.flame import FLAME
from flrl.aggregation.fltrust import FLTrust
from flrl.aggregation.foolsgold import FoolsGold
from flrl.aggregation.geometric_median import GeometricMedian
from flrl.aggregation.krum import Krum, MultiKrum
from flrl.aggregation.mda import MDA
from flrl.aggregation.mean import Mean, MeanReducer
from flrl.aggregation.mean_of_medians import MeanOfMedians
from flrl.aggregation.median import Median
from flrl.aggregation.norm_bound import NormBound
from flrl.aggregation.row_mean import RowMean
from flrl.aggregation.rows import Before, RowRule, Rows, RowsReducer, Ruled
from flrl.aggregation.sign_majority import SignMajority
from flrl.aggregation.trimmed_mean import TrimmedMean

__all__ = [
    "ARC",
    "FLAME",
    "MDA",
    "NNM",
    "Aggregator",
    "Before",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clip",
    "Combined",
    "DnC",
    "EveryUpdate",
    "ExactSum",
    "FLTrust",
    "FoolsGold",
    "GeometricMedian",
    "Krum",
    "Meamed",
    "Mean",
    "MeanOfMedians",
    "MeanReducer",
    "Median",
    "MultiKrum",
    "NormBound",
    "Parcel",
    "Phocas",
    "Reducer",
    "RowMean",
    "RowRule",
    "Rows",
    "RowsReducer",
    "Ruled",
    "SignMajority",
    "TrimmedMean",
    "merged",
    "stats_of",
]
