"""Transforms of updates between clients and server. A new one is a file like `clip_norm.py`."""

from flrl.transforms.base import AtClient, Transform
from flrl.transforms.clip_norm import ClipNorm
from flrl.transforms.dp import CentralDP
from flrl.transforms.dp_adaptive import AdaptiveDP
from flrl.transforms.dp_distributed import DistributedDP
from flrl.transforms.dp_ftrl import FTRL
from flrl.transforms.dp_local import LocalDP
from flrl.transforms.gaussian_noise import GaussianNoise
from flrl.transforms.gradient_noise import GradientNoise
from flrl.transforms.gradient_pruning import GradientPruning
from flrl.transforms.soteria import Soteria
from flrl.transforms.top_k import TopK
from flrl.types import Context

__all__ = [
    "FTRL",
    "AdaptiveDP",
    "CentralDP",
    "DistributedDP",
    "LocalDP",
    "AtClient",
    "ClipNorm",
    "Context",
    "GaussianNoise",
    "GradientNoise",
    "GradientPruning",
    "Soteria",
    "TopK",
    "Transform",
]
