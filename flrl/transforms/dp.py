"""Central differential privacy: clients are clipped, and the server adds noise to their sum.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv
1710.06963: with Poisson sampling, the sum over the expected number of clients (their estimator f_f), and Gaussian noise
of standard deviation `noise_multiplier * clip` on the sum. It protects a client against whoever sees the models, not
against the server.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from flrl.privacy.mechanism import Charged
from flrl.transforms.bounding import Bounding, shares
from flrl.transforms.noise import laplace, normal
from flrl.types import Context, Metrics, Tensors

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup


class CentralDP(Bounding):
    """Clips clients, and adds noise on the server.

    Args:
        clip: bound of what a client sends: of its Euclidean norm, or of its 1-norm with Laplace's noise.
        noise_multiplier: standard deviation (Laplace: scale) of the noise on the sum over `clip`.
        kind: "gaussian" or "laplace".
        per_layer: as for `Bounding`.
        secure_noise: likewise.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self,
        *,
        clip: float,
        noise_multiplier: float | None = None,
        kind: Literal["gaussian", "laplace"] = "gaussian",
        per_layer: bool = False,
        secure_noise: bool = False,
    ) -> None:
        super().__init__(clip=clip, noise_multiplier=noise_multiplier, per_layer=per_layer, secure_noise=secure_noise)
        if kind not in ("gaussian", "laplace"):
            raise ValueError(f"strategy.transforms.dp.kind={kind!r}: must be 'gaussian' or 'laplace'")
        self.kind, self.order = kind, 2 if kind == "gaussian" else 1

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """So many releases of the noisy sum over clients that Poisson sampling has chosen."""
        return [sampled(self.kind, noise_multiplier, probability(setup), charged.releases)]

    def described(self) -> Mapping[str, Any]:
        """Its settings, for `summary.json`."""
        return {**super().described(), "noise": self.kind}

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """Divide the sum by the expected number of clients, and add noise."""
        scale, draw = self.multiplier() * self.clip / context.expected, normal if self.kind == "gaussian" else laplace
        noisy = shares(vectors, context)
        if scale:
            for name, vector in noisy.items():
                noisy[name] = vector.add_(draw(vector.numel(), self.generator(context)), alpha=scale)
        return noisy, state, {"scale": scale}


def probability(setup: "Setup") -> float:
    """The probability of each client in a round: that of Poisson sampling, or 1 for everybody."""
    return float(getattr(setup.sampler, "probability", 1.0))


def sampled(kind: str, noise_multiplier: float, probability: float, count: int) -> "DpEvent":
    """So many releases of a sum with noise, over clients that Poisson sampling has chosen."""
    import dp_accounting

    if not noise_multiplier:
        return dp_accounting.SelfComposedDpEvent(dp_accounting.NonPrivateDpEvent(), count)
    kinds = {"gaussian": dp_accounting.GaussianDpEvent, "laplace": dp_accounting.LaplaceDpEvent}
    one = kinds[kind](noise_multiplier)
    if probability < 1:
        one = dp_accounting.PoissonSampledDpEvent(probability, one)
    return dp_accounting.SelfComposedDpEvent(one, count)
