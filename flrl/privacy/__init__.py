"""Privacy with a number: what has been released, and the epsilon that follows from it."""

from flrl.privacy.accounting import calibrated, epsilon, sampled_gaussian

__all__ = ["calibrated", "epsilon", "sampled_gaussian"]
