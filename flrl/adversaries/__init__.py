"""Malicious clients and servers. A new adversary is a file like `sign_flip.py`; `base.py` names what it may change."""

from flrl.adversaries.alie import ALIE
from flrl.adversaries.backdoor import Backdoor
from flrl.adversaries.base import Adversary, AdversaryContext, Nobody, Probe
from flrl.adversaries.client_canaries import ClientCanaries
from flrl.adversaries.dba import DBA
from flrl.adversaries.fang import FangKrum, FangTrimmedMean
from flrl.adversaries.free_rider import FreeRider
from flrl.adversaries.gaussian import Gaussian
from flrl.adversaries.ipm import IPM
from flrl.adversaries.label_flip import LabelFlip
from flrl.adversaries.mapf import MAPF
from flrl.adversaries.mimic import Mimic
from flrl.adversaries.min_max import MinMax, MinSum
from flrl.adversaries.model_replacement import ModelReplacement
from flrl.adversaries.server_fishing import ServerFishing
from flrl.adversaries.server_imprint import ServerImprint
from flrl.adversaries.sign_flip import SignFlip
from flrl.adversaries.threat import Threat
from flrl.adversaries.zero import Zero

__all__ = [
    "ALIE",
    "DBA",
    "IPM",
    "MAPF",
    "Adversary",
    "AdversaryContext",
    "Backdoor",
    "ClientCanaries",
    "FangKrum",
    "FangTrimmedMean",
    "FreeRider",
    "Gaussian",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "Nobody",
    "Probe",
    "ServerFishing",
    "ServerImprint",
    "SignFlip",
    "Threat",
    "Zero",
]
