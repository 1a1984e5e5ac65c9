"""Model replacement: a malicious client scales its update up, so that the aggregate becomes the model that it has.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How to Backdoor Federated Learning", AISTATS 2020, arXiv 1807.00459: the
update is multiplied by gamma, n / eta there. Here by the cohort's weight over the client's own, divided by the number
of malicious clients that take part, so that together they replace the model under a weighted mean. `max_norm` is
their norm constraint ("train and scale"): a longer update is scaled down to it. With `data` the model that replaces
the global one has a backdoor. Knows: its samples, its update, its weight and the cohort's. Sign: a positive factor.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries.base import Adversary, AdversaryContext, Probe
from flrl.adversaries.updates import UpdateAttack, checked_number, with_update
from flrl.data.sources import Source
from flrl.types import ClientUpdate, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


class ModelReplacement(UpdateAttack):
    """Sends the own update times a factor; on plain rows the factor is their number plus one.

    Args:
        scale: the factor, positive; null is the cohort's weight over that of the malicious clients.
        max_norm: the longest Euclidean norm that is sent, positive; null does not bound it.
        data: what happens to the malicious clients' samples; null trains on them as they are.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(
        self,
        *,
        scale: float | None = None,
        max_norm: float | None = None,
        data: Adversary | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.scale = None if scale is None else checked_number("scale", scale, above=0)
        self.max_norm = None if max_norm is None else checked_number("max_norm", max_norm, above=0)
        self.data = Adversary() if data is None else data

    def check(self, setup: "Setup") -> None:
        """Check what happens to samples too."""
        super().check(setup)
        self.data.check(setup)

    def check_samples(self, source: Source, num_samples: int) -> None:
        """Check them for `data`."""
        self.data.check_samples(source, num_samples)

    def samples(self, source: Source, indices: np.ndarray, context: AdversaryContext) -> tuple[Source, np.ndarray]:
        """What `data` makes of them."""
        return self.data.samples(source, indices, context)

    def probes(self, test: Source) -> Sequence[Probe]:
        """Those of `data`."""
        return self.data.probes(test)

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        """The scaled update."""
        share = update.weight / context.total_weight
        return with_update(update, self._scaled(update.vectors["update"], context, share)), memory

    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """The update scaled as if all clients weighed the same."""
        return self._scaled(own, context, 1 / len(context.cohort))

    def _scaled(self, own: Tensor, context: AdversaryContext, share: float) -> Tensor:
        scale = 1 / (share * max(1, len(context.present))) if self.scale is None else self.scale
        sent = own * scale
        if self.max_norm is None:
            return sent
        norm: Any = torch.linalg.vector_norm(sent)
        return sent * (self.max_norm / norm) if norm > self.max_norm else sent
