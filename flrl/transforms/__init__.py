"""Transforms of updates between clients and server. A new one is a file like `clip_norm.py`."""

from flrl.transforms.base import AtClient, Transform
from flrl.transforms.ckks import Ckks
from flrl.transforms.clip_norm import ClipNorm
from flrl.transforms.compression import (
    QSGD,
    Cast,
    Compressor,
    Downlink,
    Eden,
    FederatedDropout,
    Integers,
    PowerSGD,
    RandomK,
    Sign,
    TernGrad,
    Threshold,
    TrainableCompressor,
)
from flrl.transforms.distributed_discrete_gaussian import DistributedDiscreteGaussian
from flrl.transforms.dp import CentralDP
from flrl.transforms.dp_adaptive import AdaptiveDP
from flrl.transforms.dp_distributed import DistributedDP
from flrl.transforms.dp_ftrl import FTRL
from flrl.transforms.dp_local import LocalDP
from flrl.transforms.gaussian_noise import GaussianNoise
from flrl.transforms.gradient_noise import GradientNoise
from flrl.transforms.gradient_pruning import GradientPruning
from flrl.transforms.paillier import Paillier
from flrl.transforms.secagg import SecAgg
from flrl.transforms.skellam import Skellam
from flrl.transforms.soteria import Soteria
from flrl.transforms.top_k import TopK
from flrl.types import Context

__all__ = [
    "QSGD",
    "FTRL",
    "AdaptiveDP",
    "CentralDP",
    "DistributedDP",
    "LocalDP",
    "AtClient",
    "Cast",
    "Ckks",
    "ClipNorm",
    "Compressor",
    "Context",
    "Downlink",
    "Eden",
    "FederatedDropout",
    "GaussianNoise",
    "GradientNoise",
    "GradientPruning",
    "Integers",
    "PowerSGD",
    "RandomK",
    "Sign",
    "SecAgg",
    "DistributedDiscreteGaussian",
    "Paillier",
    "Skellam",
    "Soteria",
    "TernGrad",
    "Threshold",
    "TopK",
    "TrainableCompressor",
    "Transform",
]
