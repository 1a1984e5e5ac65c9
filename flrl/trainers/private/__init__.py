"""Private training: each sample's part in a client's steps is bounded, and noise hides it."""

from flrl.trainers.private.dp_sgd import DPSGD, steps_of_round

__all__ = ["DPSGD", "steps_of_round"]
