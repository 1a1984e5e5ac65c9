"""Observers of a finished run: what the updates that were sent give away."""

from flrl.attacks.base import Attack, Candidates, Finding, Inputs, Local, Observation, Progress

__all__ = ["Attack", "Candidates", "Finding", "Inputs", "Local", "Observation", "Progress"]
