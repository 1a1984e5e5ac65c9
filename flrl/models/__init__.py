"""Models: a LightningModule for classification, and nets for it."""

from flrl.models.classifier import Classifier

__all__ = ["Classifier"]
