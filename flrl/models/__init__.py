"""Models: a LightningModule for classification, and the nets it wraps."""

from flrl.models.classifier import Classifier

__all__ = ["Classifier"]
