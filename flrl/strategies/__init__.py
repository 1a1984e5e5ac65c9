"""Federated algorithms: one class each, with the server's part and the client's part. A new one is a file here."""

from flrl.strategies.base import Strategy
from flrl.strategies.dsfl import DSFL
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.feddc import FedDC
from flrl.strategies.feddf import FedDF
from flrl.strategies.feddistill import FedDistill
from flrl.strategies.feddyn import FedDyn
from flrl.strategies.fedexp import FedExP
from flrl.strategies.fedgems import FedGEMS
from flrl.strategies.fedkd import FedKD
from flrl.strategies.fedlin import FedLin
from flrl.strategies.fedmd import FedMD
from flrl.strategies.fednova import FedNova
from flrl.strategies.fedprox import FedProx
from flrl.strategies.fedsgd import FedSGD
from flrl.strategies.scaffold import Scaffold

__all__ = [
    "DSFL",
    "FedAvg",
    "FedDC",
    "FedDF",
    "FedDistill",
    "FedDyn",
    "FedExP",
    "FedGEMS",
    "FedKD",
    "FedLin",
    "FedMD",
    "FedNova",
    "FedProx",
    "FedSGD",
    "Scaffold",
    "Strategy",
]
