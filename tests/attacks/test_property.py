"""Property inference: whether a client's images have a mark, told by its update; and chance without a mark."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from flrl.attacks.property import Property, tell_apart
from flrl.attacks.shadow import Shadows
from flrl.data import DatasetSource
from flrl.data.datasets import digits
from flrl.data.marked import Mark
from flrl.models.nets import mlp_2nn
from flrl.trainers import TracedTrainer
from tests.attacks.observing import classifier, found, observed

N, CLIENTS = 20, 30
TRAIN = digits().train
SOURCE = TRAIN.subset(np.random.default_rng(0).permutation(len(TRAIN)))
PUBLIC = np.arange(N * CLIENTS, len(SOURCE))
HAS = np.arange(CLIENTS) % 2 == 1


def quiet(share: float, text: str) -> None:
    pass


@pytest.mark.parametrize("marked", [True, False])
def test_the_mark_is_told_from_updates(marked: bool) -> None:
    module = classifier(lambda **shape: mlp_2nn(hidden=16, **shape))
    trainer = TracedTrainer(batch_size=10)
    observation, _ = observed(module, SOURCE, np.arange(N), public=PUBLIC, unseen=True, trainer=trainer)
    given = Mark(size=2) if marked else Mark(size=2, value=0.0)  # that corner is black anyway
    one = found(Property(given=given, shadows=40), observation)
    assert set(one.numbers) == {"property_score", "property", "simulated_auc"}

    clients = replace(observation, seed=5)
    sets = [np.arange(client * N, (client + 1) * N) for client in range(CLIENTS)]
    without, having = (Shadows(clients).train(source, sets, quiet) for source in (SOURCE, given(SOURCE)))
    updates = torch.where(torch.from_numpy(HAS)[:, None], having, without).double() - observation.sent.double()
    attack, scores, train = Property(given=given, shadows=40), [], Shadows.train
    kept: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:  # the attacker's updates are the same for all clients

        def train_once(*given: Any) -> Tensor:
            kept[:] = kept or [train(*given)]
            return kept[0]

        patch.setattr(Shadows, "train", train_once)
        for update in updates:
            scores.append(attack.find(replace(observation, update=update), quiet).numbers)
    area = roc_auc_score(HAS, [numbers["property_score"] for numbers in scores])
    if marked:
        assert area > 0.9
        assert np.mean([numbers["property"] for numbers in scores] == HAS) > 0.8
        assert scores[0]["simulated_auc"] > 0.95
    else:
        chance = 1.96 * np.sqrt((CLIENTS + 1) / (12 * HAS.sum() * (~HAS).sum()))
        assert abs(area - 0.5) < chance


def test_scores_of_rows_are_those_of_regressions_on_the_others() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 20, generator=draw, dtype=torch.float64)
    rows = (rows - rows.mean(0)) / rows.std(0)
    has = torch.arange(8) % 2 == 0
    wanted = torch.where(has, 1.0, -1.0).double()
    score, own = tell_apart(rows, has, rows[0] + 1, 0.1)
    ridge = 0.1 * (rows @ rows.T).diagonal().mean()

    def weights(kept: torch.Tensor) -> torch.Tensor:
        x, y = rows[kept], wanted[kept]
        return torch.linalg.solve(x.T @ x + ridge * torch.eye(20), x.T @ y)

    for row in range(8):
        assert float(own[row]) == pytest.approx(float(rows[row] @ weights(torch.arange(8) != row)))
    assert score == pytest.approx(float((rows[0] + 1) @ weights(torch.arange(8) >= 0)))


def test_numbers_that_never_change_are_left_out() -> None:
    rows = torch.tensor([[1.0, 5.0], [-1.0, 5.0], [1.1, 5.0], [-0.9, 5.0]], dtype=torch.float64)
    score, own = tell_apart(rows, torch.tensor([True, False, True, False]), torch.tensor([2.0, 99.0]).double(), 0.01)
    assert score > 0
    assert (own > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shadows": 5}, "attack.shadows=5: must be an even number, at least 4"),
        ({"ridge": 0.0}, "attack.ridge=0.0: must be positive"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="attack") as error:
        Property(given=Mark(), **settings)
    assert str(error.value) == said


def test_what_does_not_apply_is_said() -> None:
    observation, _ = observed(classifier(mlp_2nn), SOURCE, np.arange(2), public=PUBLIC, unseen=True)
    attack = Property(given=Mark(size=9))
    assert (
        attack.objection(observation) == "attack.given: size=9: samples of shape (1, 8, 8) have no corner of that size"
    )
    attack = Property(given=Mark())
    assert "public samples in memory" in str(attack.objection(replace(observation, public=None)))
    lazy = DatasetSource([(torch.zeros(1, 8, 8), 0)] * 4)  # type: ignore[arg-type]
    assert "public samples in memory" in str(attack.objection(replace(observation, public=lazy)))
    assert "one client" in str(attack.objection(replace(observation, clients=[0, 1])))
