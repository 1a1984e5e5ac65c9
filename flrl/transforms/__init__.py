"""Transforms of updates between clients and server. A new one is a file like `clip_norm.py`."""

from flrl.transforms.base import AtClient, Transform
from flrl.transforms.clip_norm import ClipNorm
from flrl.transforms.compression import (
    QSGD,
    Cast,
    Compressor,
    Downlink,
    Eden,
    Integers,
    PowerSGD,
    RandomK,
    Sign,
    TernGrad,
    Threshold,
    TrainableCompressor,
)
from flrl.transforms.gaussian_noise import GaussianNoise
from flrl.transforms.gradient_noise import GradientNoise
from flrl.transforms.gradient_pruning import GradientPruning
from flrl.transforms.soteria import Soteria
from flrl.transforms.top_k import TopK
from flrl.types import Context

__all__ = [
    "QSGD",
    "AtClient",
    "Cast",
    "ClipNorm",
    "Compressor",
    "Context",
    "Downlink",
    "Eden",
    "GaussianNoise",
    "GradientNoise",
    "GradientPruning",
    "Integers",
    "PowerSGD",
    "RandomK",
    "Sign",
    "Soteria",
    "TernGrad",
    "Threshold",
    "TopK",
    "TrainableCompressor",
    "Transform",
]
