"""Federated algorithms: one class each, with the server's part and the client's part. A new one is a file here."""

from flrl.strategies.base import Strategy
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.fedprox import FedProx
from flrl.strategies.fedsgd import FedSGD
from flrl.strategies.scaffold import Scaffold

__all__ = ["FedAvg", "FedProx", "FedSGD", "Scaffold", "Strategy"]
