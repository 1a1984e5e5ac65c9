"""Callbacks, which are called in every round: progress, files, checkpoints, guards."""

from flrl.callbacks.base import Callback, Callbacks, RunInfo
from flrl.callbacks.checkpoint import Checkpoint
from flrl.callbacks.guards import EarlyStopping, NanGuard
from flrl.callbacks.optimized import OptimizedMetric
from flrl.callbacks.privacy import PrivacyLedger
from flrl.callbacks.progress import Progress
from flrl.callbacks.run_folder import RunFolder
from flrl.callbacks.target import Target

__all__ = [
    "Callback",
    "Callbacks",
    "Checkpoint",
    "EarlyStopping",
    "NanGuard",
    "OptimizedMetric",
    "PrivacyLedger",
    "Progress",
    "RunFolder",
    "RunInfo",
    "Target",
]
