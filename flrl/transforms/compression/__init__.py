"""Compressors: transforms that encode a client's update. A new one is a subclass of `TrainableCompressor`."""

from flrl.transforms.compression.base import Compressor, Encoded, TrainableCompressor
from flrl.transforms.compression.cast import Cast
from flrl.transforms.compression.downlink import Downlink
from flrl.transforms.compression.dropout import FederatedDropout
from flrl.transforms.compression.power_sgd import PowerSGD
from flrl.transforms.compression.quantise import QSGD, Integers, TernGrad
from flrl.transforms.compression.rotation import Eden
from flrl.transforms.compression.sign import Sign
from flrl.transforms.compression.sparse import RandomK, Threshold

__all__ = [
    "QSGD",
    "Cast",
    "Compressor",
    "Downlink",
    "Eden",
    "Encoded",
    "FederatedDropout",
    "Integers",
    "PowerSGD",
    "RandomK",
    "Sign",
    "TernGrad",
    "Threshold",
    "TrainableCompressor",
]
