"""Federated algorithms: one class each, with the server's part and the client's part. A new one is a file here."""

from flrl.strategies.base import Strategy
from flrl.strategies.centralized import Centralized
from flrl.strategies.ditto import Ditto
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.fedbabu import FedBABU
from flrl.strategies.feddc import FedDC
from flrl.strategies.feddyn import FedDyn
from flrl.strategies.fedexp import FedExP
from flrl.strategies.fedlin import FedLin
from flrl.strategies.fednova import FedNova
from flrl.strategies.fedprox import FedProx
from flrl.strategies.fedrep import FedRep
from flrl.strategies.fedsgd import FedSGD
from flrl.strategies.local_only import LocalOnly
from flrl.strategies.scaffold import Scaffold

__all__ = [
    "Centralized",
    "Ditto",
    "FedAvg",
    "FedBABU",
    "FedDC",
    "FedDyn",
    "FedExP",
    "FedLin",
    "FedNova",
    "FedProx",
    "FedRep",
    "FedSGD",
    "LocalOnly",
    "Scaffold",
    "Strategy",
]
