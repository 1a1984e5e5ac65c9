"""Shifts of clients' samples: of features, of labels, over time. A new one is a class here, or anywhere, and a yaml."""

from flrl.data.shifts.base import FeatureShift, Shift
from flrl.data.shifts.drift import Drift
from flrl.data.shifts.features import Blur, Contrast, Noise, Rotation
from flrl.data.shifts.labels import LabelNoise, LabelPermutation
from flrl.data.shifts.shifted import NOBODY, shifted

__all__ = [
    "NOBODY",
    "Blur",
    "Contrast",
    "Drift",
    "FeatureShift",
    "LabelNoise",
    "LabelPermutation",
    "Noise",
    "Rotation",
    "Shift",
    "shifted",
]
