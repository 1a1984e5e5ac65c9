"""Federated algorithms: one class each, with the server's part and the client's part. A new one is a file here."""

from flrl.strategies.apfl import APFL
from flrl.strategies.base import Strategy
from flrl.strategies.cfl import CFL
from flrl.strategies.fedala import FedALA
from flrl.strategies.fedamp import FedAMP
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.feddc import FedDC
from flrl.strategies.feddyn import FedDyn
from flrl.strategies.fedexp import FedExP
from flrl.strategies.fedlin import FedLin
from flrl.strategies.fednova import FedNova
from flrl.strategies.fedprox import FedProx
from flrl.strategies.fedrod import FedRoD
from flrl.strategies.fedsgd import FedSGD
from flrl.strategies.ifca import IFCA
from flrl.strategies.perfedavg import PerFedAvg
from flrl.strategies.pfedme import PFedMe
from flrl.strategies.scaffold import Scaffold

__all__ = [
    "APFL",
    "CFL",
    "IFCA",
    "FedALA",
    "FedAMP",
    "FedAvg",
    "FedDC",
    "FedDyn",
    "FedExP",
    "FedLin",
    "FedNova",
    "FedProx",
    "FedRoD",
    "FedSGD",
    "PFedMe",
    "PerFedAvg",
    "Scaffold",
    "Strategy",
]
