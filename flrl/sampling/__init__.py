"""Samplers: choose the clients of a round, as a function of (seed, round), or also of what clients reported."""

from flrl.sampling.all_clients import AllClients
from flrl.sampling.base import LOSS_BYTES, LOSSES, NORMS, Sampler, draw, needs, noted
from flrl.sampling.poisson import PoissonSampler
from flrl.sampling.power_of_choice import PowerOfChoice
from flrl.sampling.uniform import UniformSampler

__all__ = [
    "LOSSES",
    "LOSS_BYTES",
    "NORMS",
    "AllClients",
    "PoissonSampler",
    "PowerOfChoice",
    "Sampler",
    "UniformSampler",
    "draw",
    "needs",
    "noted",
]
