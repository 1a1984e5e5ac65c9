"""Secure aggregation: a server learns the sum of its clients' vectors of integers, and nothing else of them.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth, "Practical Secure Aggregation for
Privacy-Preserving Machine Learning", CCS 2017, for a server that follows the protocol; and SecAgg+, Bell, Bonawitz,
Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, where a client
has few neighbours instead of all. `Client` and `Server` are the two ends, and exchange bytes alone.
"""

from flrl.secagg.client import Client
from flrl.secagg.crypto import Secrets
from flrl.secagg.graph import Graph
from flrl.secagg.masks import MaskedSum, Masking
from flrl.secagg.server import Server
from flrl.secagg.session import STAGES, Session, Traffic

__all__ = ["STAGES", "Client", "Graph", "MaskedSum", "Masking", "Secrets", "Server", "Session", "Traffic"]
