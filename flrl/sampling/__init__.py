"""Samplers: choose the clients of a round, as a function of (seed, round), or also of what clients reported."""

from flrl.sampling.all_clients import AllClients
from flrl.sampling.base import (
    LOSS_BYTES,
    LOSSES,
    NORMS,
    Sampler,
    draw,
    estimated,
    expected,
    needs,
    noted,
    reweighed,
    weighs,
)
from flrl.sampling.importance import ImportanceSampler
from flrl.sampling.poisson import PoissonSampler
from flrl.sampling.power_of_choice import PowerOfChoice
from flrl.sampling.round_robin import RoundRobin
from flrl.sampling.trace import TraceSampler
from flrl.sampling.uniform import UniformSampler
from flrl.sampling.weighted import WeightedSampler

__all__ = [
    "LOSSES",
    "LOSS_BYTES",
    "NORMS",
    "AllClients",
    "ImportanceSampler",
    "PoissonSampler",
    "PowerOfChoice",
    "RoundRobin",
    "Sampler",
    "TraceSampler",
    "UniformSampler",
    "WeightedSampler",
    "draw",
    "estimated",
    "expected",
    "needs",
    "noted",
    "reweighed",
    "weighs",
]
