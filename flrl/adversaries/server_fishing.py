"""A malicious server that sends a model in which few samples leave gradients, which `attack=fishing` then inverts.

Wen, Geiping, Fowl, Goldblum, Goldstein, "Fishing for User Data in Large-Batch Federated Learning via Gradient
Magnification", ICML 2022, arXiv 2202.00580: only the last layer is changed. Class fishing leaves the gradients of one
class's samples; feature fishing, where a client has samples of this class alone, those of the samples with a large
feature. Knows: the client's update; for feature fishing a threshold, which the paper finds by earlier rounds.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.server import MaliciousServer
from flrl.adversaries.tampering import fishing_for_class, fishing_for_feature, fishing_objection
from flrl.types import Broadcast

if TYPE_CHECKING:
    from flrl.setup import Setup


class ServerFishing(MaliciousServer):
    """Fishes for the samples of a class, or for those of them with a feature above a threshold.

    Args:
        target: the class.
        feature: index of an input of the last layer; null fishes for the class alone.
        threshold: of the feature; null without one.
        strength: by how much the other classes' biases exceed the target's; for a feature, what it is multiplied with.
        options: as for `flrl.adversaries.server.MaliciousServer`.

    Raises:
        ValueError: a setting is out of range, or only one of feature and threshold is given.
    """

    def __init__(
        self,
        *,
        target: int,
        feature: int | None = None,
        threshold: float | None = None,
        strength: float = 1000.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value in (("target", target), ("feature", feature)):
            if value is not None and value < 0:
                raise ValueError(f"adversary.{name}={value}: must be at least 0")
        if not 0 < strength < float("inf"):
            raise ValueError(f"adversary.strength={strength}: must be positive and finite")
        if (feature is None) != (threshold is None):
            raise ValueError(
                f"adversary.threshold={threshold}: belongs to adversary.feature={feature}; set both or none"
            )
        self.target, self.feature, self.threshold, self.strength = target, feature, threshold, strength

    def check(self, setup: "Setup") -> None:
        """Refuse modules whose last layer is not a dense one with a bias, or has no such class or feature.

        Raises:
            ValueError: it is another layer, or smaller.
        """
        super().check(setup)
        reason = fishing_objection(setup.module, setup.layout)
        if reason is not None:
            raise ValueError(f"adversary=server_fishing: {reason}")
        classes, features = setup.layout.trained[-2].shape
        if self.target >= classes:
            raise ValueError(f"adversary.target={self.target}: the model has {classes} classes, from 0")
        if self.feature is not None and self.feature >= features:
            raise ValueError(f"adversary.feature={self.feature}: the last layer has {features} inputs, from 0")

    def broadcast(self, broadcast: Broadcast, context: AdversaryContext) -> Broadcast:
        """The broadcast with a model for one class."""
        vector, layout = broadcast.vector, context.layout
        if self.feature is None or self.threshold is None:
            return replace(broadcast, vector=fishing_for_class(vector, layout, self.target, self.strength))
        tampered = fishing_for_feature(vector, layout, self.target, self.feature, self.threshold, self.strength)
        return replace(broadcast, vector=tampered)
