"""Homomorphic encryption: sums of numbers that whoever adds them cannot read. A new scheme is a file like `ckks.py`."""

from flrl.encryption.base import KeyHolder, Scheme, require
from flrl.encryption.ckks import CkksKeyHolder, CkksScheme
from flrl.encryption.paillier import PaillierKeyHolder, PaillierScheme

__all__ = ["CkksKeyHolder", "CkksScheme", "KeyHolder", "PaillierKeyHolder", "PaillierScheme", "Scheme", "require"]
