"""Runs as objects and data frames: `flrl.load`, `flrl.results.runs`, `flrl.results.frame`."""

from flrl.results.run import Run, frame, load, runs

__all__ = ["Run", "frame", "load", "runs"]
