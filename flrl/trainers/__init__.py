"""Engines of local training: each trains an unmodified LightningModule, with the same batches and random numbers."""

from flrl.trainers.auto import choose_engine
from flrl.trainers.base import Trainer
from flrl.trainers.eager import EagerTrainer
from flrl.trainers.lightning import LightningTrainer
from flrl.trainers.problem import ClientHooks, LocalProblem, Trained
from flrl.trainers.traced import TracedTrainer
from flrl.trainers.vectorized import VectorizedTrainer

__all__ = [
    "ClientHooks",
    "EagerTrainer",
    "LightningTrainer",
    "LocalProblem",
    "Trained",
    "TracedTrainer",
    "Trainer",
    "VectorizedTrainer",
    "choose_engine",
]
