"""Federated algorithms: one class each, with the server's part and the client's part. A new one is a file here."""

from flrl.strategies.afl import AFL
from flrl.strategies.base import Strategy
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.fedprox import FedProx
from flrl.strategies.fedsam import FedSAM
from flrl.strategies.fedsgd import FedSGD
from flrl.strategies.mime import Mime
from flrl.strategies.mimelite import MimeLite
from flrl.strategies.moon import Moon
from flrl.strategies.qfedavg import QFedAvg
from flrl.strategies.scaffold import Scaffold

__all__ = [
    "AFL",
    "FedAvg",
    "FedProx",
    "FedSAM",
    "FedSGD",
    "Mime",
    "MimeLite",
    "Moon",
    "QFedAvg",
    "Scaffold",
    "Strategy",
]
