"""Dashboards: Lightning's loggers fed with a row per round, and what W&B gets besides."""

from flrl.logging.loggers import Loggers

__all__ = ["Loggers"]
