"""Distributed differential privacy: each client adds a share of the noise, and the sum has all of it.

Dwork, Kenthapadi, McSherry, Mironov, Naor, "Our Data, Ourselves", EUROCRYPT 2006. Each client's noise has standard
deviation `noise_multiplier * clip / sqrt(survivors)`, so that the shares of `survivors` clients suffice. Who sees
nothing but sums, as behind secure aggregation, learns no more of a client than from zeros in the place of its update.
Cohorts are public, so that sampling amplifies nothing. Where fewer answer than `survivors`, the server adds what is
missing before the strategy sees the sum: those rounds have their noise towards everybody but the server.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flrl.privacy.mechanism import Charged
from flrl.transforms.bounding import Bounding, shares
from flrl.transforms.dp import sampled
from flrl.transforms.dp_local import with_noise
from flrl.types import ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup


class DistributedDP(Bounding):
    """Each client adds a share of the noise; the server divides the sum by the expected number of clients.

    Args:
        clip: as for `Bounding`.
        survivors: how many clients' shares make up the noise, at least 1: as many as will answer in a round.
        noise_multiplier: standard deviation of the noise of so many shares over `clip`.
        per_layer: as for `Bounding`.
        secure_noise: likewise.

    Raises:
        ValueError: a setting is invalid.
    """

    fills_zeros = True
    name, cohorts, by_client, noise_from = "dp_distributed", "public", True, "shares"

    def __init__(
        self,
        *,
        clip: float,
        survivors: int,
        noise_multiplier: float | None = None,
        per_layer: bool = False,
        secure_noise: bool = False,
    ) -> None:
        super().__init__(clip=clip, noise_multiplier=noise_multiplier, per_layer=per_layer, secure_noise=secure_noise)
        if survivors < 1:
            raise ValueError(f"strategy.transforms.dp_distributed.survivors={survivors}: must be at least 1")
        self.survivors = survivors

    def check(self, setup: "Setup") -> None:
        """Raise ValueError if no round has so many clients."""
        most = setup.sampler.largest(setup.num_clients)
        if self.survivors > most:
            raise ValueError(
                f"strategy.transforms.dp_distributed.survivors={self.survivors}: a round has at most {most} clients"
            )

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """The releases of the client that took part most often."""
        return [sampled("gaussian", noise_multiplier, 1.0, charged.most())]

    def described(self) -> Mapping[str, Any]:
        """Its settings, for `summary.json`."""
        return {**super().described(), "survivors": self.survivors}

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip all that the client sends, and add its share of the noise."""
        update, memory, numbers = super().client(update, memory, context)
        std = self.multiplier() * self.clip / math.sqrt(self.survivors)
        return replace(update, vectors=with_noise(update.vectors, std, self, context)), memory, numbers

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """Divide the sum by the expected number of clients, and add the noise of those that are missing."""
        missing = max(0.0, self.survivors - context.received)
        std = self.multiplier() * self.clip * math.sqrt(missing / self.survivors)
        noisy = with_noise(shares(vectors, context), std / context.expected, self, context)
        return noisy, state, {"missing": missing}
