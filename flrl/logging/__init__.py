"""Dashboards: Lightning's loggers get a row per round, W&B some artifacts besides."""

from flrl.logging.loggers import Loggers

__all__ = ["Loggers"]
