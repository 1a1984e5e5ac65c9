"""LiRA: a likelihood ratio for each candidate, of its confidence in models trained with it and without it.

Carlini, Chien, Nasr, Song, Terzis, Tramèr, "Membership Inference Attacks From First Principles", IEEE S&P 2022, arXiv
2112.03570. Here shadows of a client's model repeat its local training from what it was sent. Each candidate is queried
as it is, without augmentations, and a fixed variance is that around each candidate's own mean.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flrl.attacks.base import Finding, Observation, Progress
from flrl.attacks.confidence import class_scores, log_odds
from flrl.attacks.membership import WithShadows, enough_public
from flrl.attacks.samples import gathered, joined
from flrl.attacks.shadow import dealt
from flrl.data import TensorSource
from flrl.seeding import SERVER, generator_for


class MembershipLiRA(WithShadows):
    """Scores each candidate by its likelihood ratio.

    Args:
        online: shadows are trained on random candidates, at most half of them, filled up with public samples to the
            client's number; else on public samples alone, and the score is how far the candidate's confidence lies
            above that of models without it, in standard deviations.
        fixed_variance: one variance for all candidates instead of each one's own, steadier with few shadows; null:
            with fewer than 64 of them.
        shadows: as for `WithShadows`.
        epochs: likewise.
        target: likewise.

    Raises:
        ValueError: a setting is invalid.
    """

    knows = (
        "an honest but curious server, or another client for the global model: sees the model, knows how clients "
        "train, has the candidates and samples like them"
    )
    source = "Carlini et al., IEEE S&P 2022, arXiv 2112.03570"

    def __init__(
        self,
        *,
        online: bool = True,
        fixed_variance: bool | None = None,
        shadows: int = 32,
        epochs: int | None = None,
        target: Literal["client", "global"] = "client",
    ) -> None:
        super().__init__(shadows=shadows, epochs=epochs, target=target)
        self.online = online
        self.fixed_variance = shadows < 64 if fixed_variance is None else fixed_variance
        if not self.fixed_variance and shadows < 4:
            raise ValueError(f"attack.shadows={shadows}: a variance for each candidate needs at least 4")

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: as for `WithShadows`, or there are no public samples."""
        return super().objection(observation) or (None if self.online else enough_public(observation))

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Train shadow models and score the candidates.

        Raises:
            ValueError: a candidate is in too few shadow models' sets.
        """
        candidates = self.candidates(observation)
        rng = generator_for(observation.seed, observation.round, SERVER, "attack/membership_lira")
        samples, sets = self.sets(observation, candidates, rng)
        members = torch.zeros(self.shadows, len(candidates), dtype=torch.bool)
        if self.online:
            for row, chosen in enumerate(sets):
                members[row, chosen[chosen < len(candidates)]] = True
            if (members.sum(0) < (1 if self.fixed_variance else 2)).any():
                raise ValueError(
                    f"attack.shadows={self.shadows}: too few for {len(candidates)} candidates of whom each shadow has "
                    f"{int(members[0].sum())}, some are in none"
                )
        vectors = self.trained(observation, samples, sets, lambda share, text: progress(0.95 * share, text))
        classes = candidates.targets
        shadows = torch.stack([log_odds(class_scores(observation, v, candidates), classes) for v in vectors])
        observed = log_odds(class_scores(observation, self.attacked(observation), candidates), classes)
        progress(1.0, f"{len(candidates)} candidates")
        ratio = likelihood_ratio if self.online else one_sided
        return Finding(scores=ratio(observed, shadows, members, fixed_variance=self.fixed_variance))

    def sets(
        self, observation: Observation, candidates: TensorSource, rng: np.random.Generator
    ) -> tuple[TensorSource, list[np.ndarray]]:
        """Samples to train on, with the candidates first if they are among them, and each shadow's indices."""
        size, public = observation.num_samples, observation.public
        if not self.online:
            assert public is not None
            return gathered(public, np.arange(len(public))), dealt(len(public), size, self.shadows, rng)
        sets = dealt(len(candidates), size, self.shadows, rng)
        lacking = min(size - len(sets[0]), 0 if public is None else len(public))
        if public is None or lacking <= 0:
            return candidates, sets
        drawn = [rng.choice(len(public), lacking, replace=False) for _ in sets]
        samples = joined(candidates, gathered(public, np.arange(len(public))))
        return samples, [np.concatenate([a, b + len(candidates)]) for a, b in zip(sets, drawn, strict=True)]


def likelihood_ratio(observed: Tensor, shadows: Tensor, members: Tensor, *, fixed_variance: bool) -> Tensor:
    """The logarithm of the ratio of two normal densities at each candidate's observed log odds.

    Args:
        observed: log odds of the attacked model, `[n]`.
        shadows: those of the shadow models, `[models, n]`.
        members: which candidates a shadow was trained on, `[models, n]`; each candidate by at least one, and not by
            all.
        fixed_variance: estimate one variance for all candidates' members and one for non-members.

    Returns:
        `log N(observed; mean and variance with it) - log N(observed; those without it)`, `[n]`.
    """
    inside = _density(observed, shadows, members, fixed_variance)
    return inside - _density(observed, shadows, ~members, fixed_variance)


def one_sided(observed: Tensor, shadows: Tensor, members: Tensor, *, fixed_variance: bool) -> Tensor:
    """How many standard deviations the log odds lie above those of models without the candidate, `[n]`.

    It orders candidates as the probability does that a model without the candidate has less; arguments as for
    `likelihood_ratio`.
    """
    mean, variance = _moments(shadows, ~members, fixed_variance)
    return (observed - mean) / variance.sqrt()


def _density(observed: Tensor, shadows: Tensor, chosen: Tensor, fixed_variance: bool) -> Tensor:
    mean, variance = _moments(shadows, chosen, fixed_variance)
    return -0.5 * (variance.log() + (observed - mean).square() / variance)


def _moments(shadows: Tensor, chosen: Tensor, fixed_variance: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance over the chosen models of each column."""
    count = chosen.sum(0)
    mean = shadows.where(chosen, 0.0).sum(0) / count
    squares = (shadows - mean).square().where(chosen, 0.0)
    if fixed_variance:
        freedom = (count - 1).clamp(min=0).sum().clamp(min=1)
        variance = (squares.sum() / freedom).expand_as(mean)
    else:
        variance = squares.sum(0) / (count - 1)
    return mean, variance.clamp(min=1e-12)
