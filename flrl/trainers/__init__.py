"""How one client trains: engines that take an unmodified LightningModule and agree on the same seeds."""

from flrl.trainers.auto import AutoTrainer
from flrl.trainers.base import ClientHalf, LocalProblem, Trainer
from flrl.trainers.eager import EagerTrainer
from flrl.trainers.lightning import LightningTrainer
from flrl.trainers.traced import TracedTrainer
from flrl.trainers.vectorized import VectorizedTrainer

__all__ = [
    "AutoTrainer",
    "ClientHalf",
    "EagerTrainer",
    "LightningTrainer",
    "LocalProblem",
    "TracedTrainer",
    "Trainer",
    "VectorizedTrainer",
]
