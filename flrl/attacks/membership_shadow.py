"""Membership by a net that learns, on shadow models, how a model's answers to members differ.

Shokri, Stronati, Song, Shmatikov, "Membership Inference Attacks Against Machine Learning Models", IEEE S&P 2017, arXiv
1610.05820. There each class has an attack net that sees the model's probabilities in the order of classes; here one net
is told the class and sees their logarithms in descending order besides, which needs fewer shadows.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from flrl.attacks.base import Finding, Observation, Progress
from flrl.attacks.confidence import class_scores, log_odds
from flrl.attacks.membership import WithShadows, enough_public
from flrl.attacks.samples import gathered
from flrl.attacks.shadow import dealt
from flrl.seeding import SERVER, generator_for, isolated_randomness, seed_for

_STEPS = 300


class MembershipShadow(WithShadows):
    """Scores each candidate by a net trained on shadow models of public samples.

    Args:
        hidden: units of the attack net's hidden layer.
        shadows: as for `WithShadows`.
        epochs: likewise.
        target: likewise.

    Raises:
        ValueError: a setting is invalid.
    """

    knows = (
        "an honest but curious server, or another client for the global model: sees the model, knows how clients "
        "train, has the candidates and samples like those of clients"
    )
    source = "Shokri et al., IEEE S&P 2017, arXiv 1610.05820"

    def __init__(
        self,
        *,
        hidden: int = 64,
        shadows: int = 16,
        epochs: int | None = None,
        target: Literal["client", "global"] = "client",
    ) -> None:
        super().__init__(shadows=shadows, epochs=epochs, target=target)
        if hidden < 1:
            raise ValueError(f"attack.hidden={hidden}: must be at least 1")
        self.hidden = hidden

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: as for `WithShadows`, or there are no public samples."""
        return super().objection(observation) or enough_public(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Train shadow models, then the attack net on their answers, and score the candidates."""
        assert observation.public is not None
        public = gathered(observation.public, np.arange(len(observation.public)))
        rng = generator_for(observation.seed, observation.round, SERVER, "attack/membership_shadow")
        sets = dealt(len(public), observation.num_samples, self.shadows, rng)
        vectors = self.trained(observation, public, sets, lambda share, text: progress(0.9 * share, text))
        rows, members = [], []
        for index, vector in enumerate(vectors):
            both = public.subset(np.concatenate([sets[index], sets[index ^ 1]]))  # the other set of its pair is unseen
            rows.append(features(class_scores(observation, vector, both), both.targets))
            members.append(torch.arange(len(both)) < len(sets[index]))
        with isolated_randomness(seed_for(observation.seed, 0, SERVER, "attack/net"), torch.device("cpu")):
            scorer = _fitted(torch.cat(rows).float(), torch.cat(members), self.hidden)
        candidates = self.candidates(observation)
        answers = class_scores(observation, self.attacked(observation), candidates)
        progress(1.0, f"{len(candidates)} candidates")
        return Finding(scores=scorer(features(answers, candidates.targets).float()).double())


def features(scores: Tensor, classes: Tensor) -> Tensor:
    """What the attack net sees of a model's answers.

    Args:
        scores: `[samples, classes]`.
        classes: int64 `[samples]`.

    Returns:
        `[samples, 1 + 2 * classes]`: log odds of the sample's class, the logarithms of all probabilities in descending
        order, and which class it is.
    """
    logs = scores.log_softmax(1).sort(1, descending=True).values.clamp(min=-30.0)
    return torch.cat([log_odds(scores, classes)[:, None], logs, nn.functional.one_hot(classes, scores.shape[1])], 1)


class _Scorer:
    """The attack net: the logit of membership, for features that are standardised as those it has learned from."""

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        self.net, self.mean, self.std = net, mean, std

    def __call__(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.net((rows - self.mean) / self.std)[:, 0]
        return logits.detach()


def _fitted(rows: Tensor, members: Tensor, hidden: int) -> _Scorer:
    """The attack net, trained on all rows at once."""
    net = nn.Sequential(nn.Linear(rows.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 1))
    scorer = _Scorer(net, rows.mean(0), rows.std(0).clamp(min=1e-6))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    standard, wanted = (rows - scorer.mean) / scorer.std, members.float()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(net(standard)[:, 0], wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return scorer
