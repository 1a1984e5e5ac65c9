"""Models: LightningModules for classification, regression and next characters, nets, and several for one federation."""

from flrl.models.classifier import Classifier
from flrl.models.kinds import Kinds
from flrl.models.language import LanguageModel
from flrl.models.mentored import Mentored
from flrl.models.regressor import Regressor

__all__ = ["Classifier", "Kinds", "LanguageModel", "Mentored", "Regressor"]
