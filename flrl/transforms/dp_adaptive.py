"""Central differential privacy whose bound follows a quantile of the clients' norms.

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, arXiv
1905.03871, algorithm 1: each client sends besides whether its norm was within the bound C, minus 1/2. The mean of that
over the expected number of clients, with noise of its own, plus 1/2, is the share b, and
`C <- C * exp(-rate * (b - quantile))`. Both sums together are as private as one with `noise_multiplier` z: the noise on
updates is `(z^-2 - (2 count_noise)^-2)^(-1/2)` times C.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from flrl.privacy.mechanism import Charged
from flrl.transforms.bounding import Bounding, shares
from flrl.transforms.dp import probability, sampled
from flrl.transforms.noise import normal
from flrl.types import ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup

WITHIN = "within"
"""The name of the vector of one number that says whether a client was within the bound."""


class AdaptiveDP(Bounding):
    """Clips clients to a norm that follows a quantile, and adds noise on the server; the bound is its variable `clip`.

    Args:
        clip: the bound in the first round, positive.
        noise_multiplier: of both sums together, as for `Bounding`.
        quantile: the share of clients that are to be within the bound, in (0, 1).
        rate: of the bound's geometric steps, at least 0; 0.2 in the paper.
        count_noise: standard deviation of the noise on the number of clients within; None: the expected number of
            clients over 20, as in the paper.
        secure_noise: as for `Bounding`.

    Raises:
        ValueError: a setting is invalid.
    """

    name = "dp_adaptive"

    def __init__(
        self,
        *,
        clip: float,
        noise_multiplier: float | None = None,
        quantile: float = 0.5,
        rate: float = 0.2,
        count_noise: float | None = None,
        secure_noise: bool = False,
    ) -> None:
        super().__init__(clip=clip, noise_multiplier=noise_multiplier, secure_noise=secure_noise)
        if not 0 < quantile < 1:
            raise ValueError(f"strategy.transforms.dp_adaptive.quantile={quantile}: must be above 0 and below 1")
        if not 0 <= rate < math.inf:
            raise ValueError(f"strategy.transforms.dp_adaptive.rate={rate}: must be at least 0 and finite")
        if count_noise is not None and not 0 < count_noise < math.inf:
            raise ValueError(f"strategy.transforms.dp_adaptive.count_noise={count_noise}: must be positive, or null")
        self.quantile, self.rate, self.count_noise = quantile, rate, count_noise

    def check(self, setup: "Setup") -> None:
        """Raise ValueError if the noise on the count alone gives less privacy than both sums are to have."""
        noise = self.noise_multiplier
        if noise is not None:
            self._update_noise(probability(setup) * setup.num_clients)

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """So many releases of both sums, which are as private as one."""
        return [sampled("gaussian", noise_multiplier, probability(setup), charged.releases)]

    def described(self) -> Mapping[str, Any]:
        """Its settings, for `summary.json`."""
        return {**super().described(), "quantile": self.quantile, "rate": self.rate}

    def vector_sizes(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """The strategy's vectors, and one number."""
        return {**sizes, WITHIN: 1}

    def sends(self, state: Tensors) -> Tensors:
        """The bound, once it is another than the setting."""
        return state

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip all that the client sends to the round's bound, and send whether it was within."""
        bound = float(context.sent.get("clip", self.clip))
        update, clipped = self.clipped(update, bound, context.layout)
        within = update.vectors["update"].new_full((1,), 0.5 - clipped)
        payload = {**update.payload, WITHIN: 1}
        sent = replace(update, vectors={**update.vectors, WITHIN: within}, payload=payload)
        return sent, memory, {"clipped": clipped}

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """Add noise to both sums, and renew the bound."""
        clip = float(state.get("clip", self.clip))
        on_updates, on_count = self._update_noise(context.expected)
        noisy = shares(vectors, context)
        within = noisy.pop(WITHIN)
        for vector in noisy.values():
            vector.add_(normal(vector.numel(), self.generator(context)), alpha=on_updates * clip / context.expected)
        within = within + normal(1, self.generator(context)) * (on_count / context.expected)
        share = float(within) + 0.5
        new = clip * math.exp(-self.rate * (share - self.quantile))
        kept = {"clip": torch.tensor(new, dtype=torch.float64)}
        return noisy, kept, {"clip": clip, "within": share, "scale": on_updates * clip / context.expected}

    def _update_noise(self, expected: float) -> tuple[float, float]:
        """The noise multipliers of the updates and of the count."""
        noise, on_count = self.multiplier(), expected / 20 if self.count_noise is None else self.count_noise
        if not noise:
            return 0.0, on_count
        if not 2 * on_count > noise:
            raise ValueError(
                f"strategy.transforms.dp_adaptive.count_noise={on_count:g}: must be above half of noise_multiplier="
                f"{noise:g}, of which it takes a part"
            )
        return (noise**-2 - (2 * on_count) ** -2) ** -0.5, on_count
