"""Privacy with a number: what has been released, and the epsilon that follows from it."""

from flrl.privacy.accounting import calibrated, epsilon, sampled_gaussian
from flrl.privacy.ledger import Ledger, charges
from flrl.privacy.mechanism import Charged, Mechanism, mechanism_of
from flrl.privacy.settings import Privacy
from flrl.privacy.spending import Spending

__all__ = [
    "Charged",
    "Ledger",
    "Mechanism",
    "Privacy",
    "Spending",
    "calibrated",
    "charges",
    "epsilon",
    "mechanism_of",
    "sampled_gaussian",
]
