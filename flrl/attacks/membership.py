"""What membership attacks have in common: the model that they attack, the candidates, and their scores."""

from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np
from torch import Tensor

from flrl.attacks.base import Attack, Observation, Progress
from flrl.attacks.confidence import needs_scores
from flrl.attacks.samples import gathered
from flrl.attacks.shadow import Shadows
from flrl.data import TensorSource


class Membership(Attack):
    """Base class of attacks that ask which candidates a model was trained on.

    Args:
        target: "client": the observed client's local model, which is what it was sent plus its update; "global": the
            global model after the observed round, for members of the cohort.

    Raises:
        ValueError: `target` is neither.
    """

    def __init__(self, *, target: Literal["client", "global"] = "client") -> None:
        if target not in ("client", "global"):
            raise ValueError(f"attack.target={target!r}: must be 'client' or 'global'")
        self.target = target
        self.on_sums = target == "global"

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: no candidates, no class scores, no local model."""
        if observation.candidates is None:
            return "needs candidates of which it is asked whether they are members"
        if self.target == "client" and observation.local.only_gradient:
            return "clients take no steps, so there is no local model: attack.target=global"
        if self.target == "global" and observation.model_before is None:
            return "attack.target=global needs the global model after the round"
        return super().objection(observation) or needs_scores(observation)

    def attacked(self, observation: Observation) -> Tensor:
        """The vector of the attacked model, `[layout.size]`."""
        if self.target == "client":
            sent = observation.sent
            return (sent.double() + observation.update).to(sent.dtype)
        assert observation.model_before is not None
        return observation.model_before(observation.round + 1)

    @staticmethod
    def candidates(observation: Observation) -> TensorSource:
        """The candidates' samples."""
        assert observation.candidates is not None
        return gathered(observation.candidates.source, observation.candidates.indices)


class WithShadows(Membership):
    """Base class of those that compare with models which they train themselves.

    A client's local model is compared with shadows that start from what the client was sent and train as it does. For
    the global model whole federations would have to be repeated; shadows are trained centrally instead, from the
    initial model, on as many samples as the observed clients have.

    Args:
        shadows: number of shadow models, even: they are trained in pairs on sets without a common sample.
        epochs: passes of a shadow of the global model over its samples; null: as many as a client would make in all
            rounds up to the observed one. A client's shadows do what the client does.
        target: as for `Membership`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self, *, shadows: int = 32, epochs: int | None = None, target: Literal["client", "global"] = "client"
    ) -> None:
        super().__init__(target=target)
        if shadows < 2 or shadows % 2:
            raise ValueError(f"attack.shadows={shadows}: must be an even number, at least 2")
        if epochs is not None and epochs < 1:
            raise ValueError(f"attack.epochs={epochs}: must be at least 1, or null")
        self.shadows = shadows
        self.epochs = epochs

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: as for `Membership`, or there is no training to be repeated."""
        if observation.local.only_gradient:
            return "clients take no steps, so there is no local training to be repeated"
        return super().objection(observation)

    def trained(
        self, observation: Observation, samples: TensorSource, sets: Sequence[np.ndarray], progress: Progress
    ) -> Tensor:
        """Shadow models of some sets of samples, `[len(sets), layout.size]`."""
        shadows = Shadows(observation)
        if self.target == "client":
            return shadows.train(samples, sets, progress)
        assert observation.model_before is not None
        local, rounds = observation.local, observation.round
        steps_a_pass = ceil(observation.num_samples / local.batch_size)
        epochs = self.epochs or ceil(rounds * local.num_steps(observation.num_samples) / steps_a_pass)
        return shadows.train(samples, sets, progress, start=observation.model_before(1), epochs=epochs, round=1)


def enough_public(observation: Observation) -> str | None:
    """The reason why the public samples do not do for shadow models, or None."""
    if observation.public is None or len(observation.public) < 2:
        return "needs public samples to train shadow models on"
    return None
