"""Federated algorithms: each one class with both halves, the server's and the client's."""

from flrl.strategies.base import Backend, Strategy
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.fedprox import FedProx
from flrl.strategies.fedsgd import FedSGD
from flrl.strategies.scaffold import Scaffold

__all__ = ["Backend", "FedAvg", "FedProx", "FedSGD", "Scaffold", "Strategy"]
