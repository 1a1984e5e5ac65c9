"""Models: a LightningModule for classification, nets for it, and several of them for one federation."""

from flrl.models.classifier import Classifier
from flrl.models.kinds import Kinds
from flrl.models.mentored import Mentored

__all__ = ["Classifier", "Kinds", "Mentored"]
