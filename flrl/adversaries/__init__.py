"""Malicious clients and servers. A new adversary is a file like `sign_flip.py`; `base.py` names what it may change."""

from flrl.adversaries.base import Adversary, AdversaryContext, Nobody, Probe
from flrl.adversaries.ipm import IPM
from flrl.adversaries.label_flip import LabelFlip
from flrl.adversaries.sign_flip import SignFlip
from flrl.adversaries.threat import Threat

__all__ = [
    "IPM",
    "Adversary",
    "AdversaryContext",
    "LabelFlip",
    "Nobody",
    "Probe",
    "SignFlip",
    "Threat",
]
