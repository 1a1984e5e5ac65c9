"""Transforms of updates between clients and server. A new one is a file like `clip_norm.py`."""

from flrl.transforms.base import AtClient, Transform
from flrl.transforms.ckks import Ckks
from flrl.transforms.clip_norm import ClipNorm
from flrl.transforms.distributed_discrete_gaussian import DistributedDiscreteGaussian
from flrl.transforms.gaussian_noise import GaussianNoise
from flrl.transforms.gradient_noise import GradientNoise
from flrl.transforms.gradient_pruning import GradientPruning
from flrl.transforms.paillier import Paillier
from flrl.transforms.skellam import Skellam
from flrl.transforms.soteria import Soteria
from flrl.transforms.top_k import TopK
from flrl.types import Context

__all__ = [
    "AtClient",
    "Ckks",
    "ClipNorm",
    "Context",
    "DistributedDiscreteGaussian",
    "GaussianNoise",
    "GradientNoise",
    "GradientPruning",
    "Paillier",
    "Skellam",
    "Soteria",
    "TopK",
    "Transform",
]
