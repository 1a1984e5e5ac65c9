"""Federated algorithms: one class each, with the server's part and the client's part. A new one is a file here."""

from flrl.strategies.afl import AFL
from flrl.strategies.apfl import APFL
from flrl.strategies.base import Strategy
from flrl.strategies.centralized import Centralized
from flrl.strategies.cfl import CFL
from flrl.strategies.ditto import Ditto
from flrl.strategies.dsfl import DSFL
from flrl.strategies.fedala import FedALA
from flrl.strategies.fedamp import FedAMP
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.fedbabu import FedBABU
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
from flrl.strategies.fedrep import FedRep
from flrl.strategies.fedrod import FedRoD
from flrl.strategies.fedsam import FedSAM
from flrl.strategies.fedsgd import FedSGD
from flrl.strategies.ifca import IFCA
from flrl.strategies.local_only import LocalOnly
from flrl.strategies.mime import Mime
from flrl.strategies.mimelite import MimeLite
from flrl.strategies.moon import Moon
from flrl.strategies.perfedavg import PerFedAvg
from flrl.strategies.pfedme import PFedMe
from flrl.strategies.qfedavg import QFedAvg
from flrl.strategies.scaffold import Scaffold

__all__ = [
    "AFL",
    "APFL",
    "CFL",
    "Centralized",
    "DSFL",
    "Ditto",
    "FedALA",
    "FedAMP",
    "FedAvg",
    "FedBABU",
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
    "FedRep",
    "FedRoD",
    "FedSAM",
    "FedSGD",
    "IFCA",
    "LocalOnly",
    "Mime",
    "MimeLite",
    "Moon",
    "PFedMe",
    "PerFedAvg",
    "QFedAvg",
    "Scaffold",
    "Strategy",
]
