"""Membership by a threshold on the loss, or on the norm of the gradient over several rounds.

Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF
2018, arXiv 1709.01604: members have a smaller loss. Nasr, Shokri, Houmansadr, "Comprehensive Privacy Analysis of Deep
Learning", IEEE S&P 2019, arXiv 1812.00910: members' gradients are smaller too, and an observer of a federation sees
many models; they train a net on such features, where here they are summed.
"""

from typing import Literal

import torch
from torch import Tensor

from flrl.attacks.base import Finding, Observation, Progress
from flrl.attacks.confidence import gradient_norms, losses
from flrl.attacks.membership import Membership


class MembershipLoss(Membership):
    """Scores each candidate by minus its loss, or minus the norm of its gradient.

    Args:
        statistic: "loss" or "gradient_norm".
        rounds: number of models over which the statistic is summed: the attacked one, and the global models that were
            sent in the rounds up to the observed one, latest first.
        target: as for `Membership`.

    Raises:
        ValueError: a setting is invalid.
    """

    knows = "an honest but curious server, or another client for the global model: sees models, has the candidates"
    source = "Yeom et al., CSF 2018, arXiv 1709.01604; Nasr et al., IEEE S&P 2019, arXiv 1812.00910"

    def __init__(
        self,
        *,
        statistic: Literal["loss", "gradient_norm"] = "loss",
        rounds: int = 1,
        target: Literal["client", "global"] = "client",
    ) -> None:
        super().__init__(target=target)
        if statistic not in ("loss", "gradient_norm"):
            raise ValueError(f"attack.statistic={statistic!r}: must be 'loss' or 'gradient_norm'")
        if rounds < 1:
            raise ValueError(f"attack.rounds={rounds}: must be at least 1")
        self.statistic = statistic
        self.rounds = rounds

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: as for `Membership`, or there are fewer models."""
        if self.rounds > 1 and observation.model_before is None:
            return f"attack.rounds={self.rounds} needs the global models of earlier rounds"
        if self.rounds > observation.round + 1:
            return f"attack.rounds={self.rounds}: up to round {observation.round} there are {observation.round + 1}"
        return super().objection(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Score the candidates."""
        samples = self.candidates(observation)
        of = losses if self.statistic == "loss" else gradient_norms
        total = torch.zeros(len(samples), dtype=torch.float64)
        models = self.models(observation)
        for done, vector in enumerate(models, start=1):
            total += of(observation, vector, samples)
            progress(done / len(models), f"{done} of {len(models)} models")
        return Finding(scores=-total)

    def models(self, observation: Observation) -> list[Tensor]:
        """The attacked model, and the global models before it, latest first."""
        before = observation.model_before
        earlier = range(observation.round, observation.round - self.rounds + 1, -1)
        return [self.attacked(observation), *(before(r) for r in earlier if before is not None)]
