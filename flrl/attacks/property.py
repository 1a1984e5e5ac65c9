"""Property inference: do a client's samples have a property that is not what is learned, a mark on images for instance?

Melis, Song, De Cristofaro, Shmatikov, "Exploiting Unintended Feature Leakage in Collaborative Learning", IEEE S&P 2019,
arXiv 1805.04049, the passive attack: the attacker trains from the same model on samples with the property and without,
and learns to tell the updates apart. The paper's classifiers are random forests and logistic regression on updates of
single batches. Here it is ridge regression on whole updates, whose solution over few rows of many numbers is exact.
"""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.samples import gathered, joined
from flrl.attacks.shadow import Shadows, dealt
from flrl.data import TensorSource
from flrl.seeding import SERVER, generator_for


class Property(Attack):
    """Scores whether the observed client's samples have the property.

    `numbers` of what it finds are `property_score`, above 0 where the samples seem to have it; `property`, 1 or 0 for
    that; and `simulated_auc`, how well the attacker tells its own updates apart, each by the others: 0.5 means that it
    learns nothing, whatever the score.

    Args:
        given: makes samples with the property out of others, as `flrl.data.marked.Mark` does.
        shadows: number of simulated updates, half of them with the property.
        ridge: weight of the squared coefficients, in units of the mean squared row.

    Raises:
        ValueError: a setting is invalid.
    """

    knows = "an honest but curious server: sees the update, knows how clients train, has samples with and without"
    source = "Melis et al., IEEE S&P 2019, arXiv 1805.04049"

    def __init__(
        self, *, given: Callable[[TensorSource], TensorSource], shadows: int = 64, ridge: float = 0.01
    ) -> None:
        if shadows < 4 or shadows % 2:
            raise ValueError(f"attack.shadows={shadows}: must be an even number, at least 4")
        if not ridge > 0:
            raise ValueError(f"attack.ridge={ridge}: must be positive")
        self.given = given
        self.shadows = shadows
        self.ridge = ridge

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply: no public samples to be given the property."""
        if observation.layout.personal:
            return "clients keep parts of the model to themselves, so their training cannot be repeated"
        public = observation.public
        if not isinstance(public, TensorSource) or len(public) < 2:
            return "needs public samples in memory, to be given the property"
        try:
            self.given(public.subset(np.arange(1)))
        except ValueError as error:
            return f"attack.given: {error}"
        return super().objection(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Simulate updates, learn to tell them apart, and score the client's."""
        public = observation.public
        assert isinstance(public, TensorSource)
        everything = np.arange(len(public))
        samples = joined(gathered(public, everything), gathered(self.given(public), everything))
        rng = generator_for(observation.seed, observation.round, SERVER, "attack/property")
        sets = dealt(len(public), observation.num_samples, self.shadows, rng)
        has = torch.arange(self.shadows) // 2 % 2 == 1  # the two of a pair alike
        sets = [chosen + len(public) * bool(having) for chosen, having in zip(sets, has, strict=True)]
        vectors = Shadows(observation).train(samples, sets, lambda share, text: progress(0.95 * share, text))
        updates = vectors.double() - observation.sent.double()
        score, own = tell_apart(updates, has, observation.update, self.ridge)
        progress(1.0, f"score {score:.2f}")
        numbers = {
            "property_score": score,
            "property": float(score > 0),
            "simulated_auc": float(roc_auc_score(has.numpy(), own.numpy())),
        }
        return Finding(numbers=numbers)


def tell_apart(updates: Tensor, has: Tensor, update: Tensor, ridge: float) -> tuple[float, Tensor]:
    """Ridge regression of +1 and -1 on standardised updates, in its dual form.

    Args:
        updates: rows to learn from, float64 `[n, d]`.
        has: which of them have the property, `[n]`.
        update: the row to be scored, `[d]`.
        ridge: weight of the squared coefficients, in units of the mean squared row.

    Returns:
        The score of `update`, and for each row its score by a regression on all others, `[n]`: with the kernel
        `K = X X' + ridge`, that is `y - (K^-1 y) / diag(K^-1)`.
    """
    mean, std = updates.mean(0), updates.std(0)
    used = std > 0
    rows = (updates[:, used] - mean[used]) / std[used]
    row = (update[used] - mean[used]) / std[used]
    wanted = torch.where(has, 1.0, -1.0).to(torch.float64)
    kernel = rows @ rows.T
    inverse = torch.linalg.inv(kernel + ridge * kernel.diagonal().mean() * torch.eye(len(rows), dtype=torch.float64))
    weights = inverse @ wanted
    return float(row @ (rows.T @ weights)), wanted - weights / inverse.diagonal()
