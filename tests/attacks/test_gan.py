"""The GAN attack on digits: others than the attacked model take what is generated for the class."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from flrl.attacks import Observation
from flrl.attacks.gan import GAN, Generator, Normal
from flrl.attacks.samples import gathered
from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.data.datasets import digits
from flrl.models.nets import mlp_2nn, softmax_regression
from flrl.trainers import EagerTrainer
from tests.attacks.observing import classifier, client_update, found, inputs_of, observed

DIGITS = digits()
SOURCE = DIGITS.train
TRAINER = EagerTrainer(batch_size=16)


def federation(net: Any, rounds: int, *, learns: bool = True) -> Observation:
    """What a client has seen of a federation of two others, of 400 samples each."""
    module = classifier(net)
    models = [BoundModel(module).vector.clone()]
    for round in range(1, rounds + 1):
        sent, parts = models[-1], np.split(np.arange(800), 2)
        updates = [client_update(module, SOURCE, p, TRAINER, sent, round=round) for p in (parts if learns else [])]
        models.append((sent.double() + sum(updates, torch.zeros(len(sent)).double()) / 2).float())
    observation, _ = observed(
        module, SOURCE, np.arange(250), trainer=TRAINER, public=np.arange(900, 1438), unseen=True, round=rounds,
        sent=models[-2], model_before=lambda r: models[r - 1],
    )  # fmt: skip
    return observation


def taken_for(made: Tensor, target: int) -> list[float]:
    """The share that independent classifiers, trained on other samples, take for the class."""
    x, y = DIGITS.test.inputs.flatten(1).numpy(), DIGITS.test.targets.numpy()
    judges = [LogisticRegression(max_iter=200), RandomForestClassifier(50, random_state=0)]
    return [float((judge.fit(x, y).predict(made.flatten(1).numpy()) == target).mean()) for judge in judges]


def likeness(made: Tensor, target: int) -> float:
    mean = SOURCE.inputs[SOURCE.targets == target].mean(0)
    return float(np.corrcoef(made.mean(0).flatten().numpy(), mean.flatten().numpy())[0, 1])


@pytest.mark.parametrize(
    ("net", "rounds", "targets"),
    [
        (softmax_regression, 5, [3]),
        pytest.param(mlp_2nn, 10, [0, 3, 8], marks=pytest.mark.slow),
        pytest.param(softmax_regression, 10, [0, 8], marks=pytest.mark.slow),
    ],
)
def test_generated_samples_are_taken_for_the_class(net: Any, rounds: int, targets: Sequence[int]) -> None:
    observation = federation(net, rounds)
    for target in targets:
        finding = found(GAN(target=target), observation)
        assert finding.inputs is not None
        assert finding.inputs.shape == (32, 1, 8, 8)
        assert finding.numbers["success"] > 0.95
        assert min(taken_for(finding.inputs, target)) > 0.8
        assert likeness(finding.inputs, target) > 0.45


def test_a_federation_that_learns_nothing_gives_nothing_away() -> None:
    finding = found(GAN(target=3), federation(softmax_regression, 2, learns=False))
    assert finding.inputs is not None
    assert max(taken_for(finding.inputs, 3)) < 0.2


def test_generated_samples_are_under_wrong_classes_among_the_attackers_own() -> None:
    observation = federation(softmax_regression, 1, learns=False)
    assert not (observation.public.labels[GAN(target=7).own(observation)] == 7).any()  # type: ignore[union-attr,index]
    own, made = gathered(SOURCE, np.arange(18)), torch.full((5, 1, 8, 8), 9.0)
    mixed = GAN(target=7).mixed(own, made, 10)
    added = mixed.targets[(mixed.inputs == 9.0).flatten(1).all(1)]
    assert len(mixed) == 20
    assert len(added) == 2
    assert (added != 7).all()
    mixed = GAN(target=7, fake=2).mixed(own, made, 10)
    assert mixed.targets[(mixed.inputs == 9.0).flatten(1).all(1)].tolist() == [2, 2]


def test_distances_are_those_of_mahalanobis() -> None:
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = torch.cov(rows.T)
    ridge = 0.05 * covariance.diagonal().mean()
    away = rows[:3] + 1 - rows.mean(0)
    expected = (away @ torch.linalg.inv(covariance + ridge * torch.eye(4)) * away).sum(1) / 4
    assert torch.allclose(Normal(rows).distances(rows[:3] + 1), expected)


@pytest.mark.parametrize("shape", [(3, 7, 9), (1, 8, 8), (11,)])
def test_generators_make_any_shape_in_the_range_of_inputs(shape: tuple[int, ...]) -> None:
    example = TensorSource(torch.linspace(-2, 3, 2 * int(np.prod(shape))).view(2, *shape), torch.tensor([0, 1]))
    made = Generator(5, inputs_of(example))(torch.randn(4, 5))
    assert made.shape == (4, *shape)
    assert made.min() >= -2
    assert made.max() <= 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": -1}, "attack.target=-1: must be a class from 0 on"),
        ({"fake": 0}, "attack.fake=0: must be another class than attack.target=0, or null"),
        ({"steps": 0}, "attack.steps=0: must be at least 1"),
        ({"prior": -1.0}, "attack.prior=-1.0: must be at least 0"),
        ({"lr": 0.0}, "attack.lr=0.0: must be positive"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="attack") as error:
        GAN(**settings)
    assert str(error.value) == said


def test_what_does_not_apply_is_said() -> None:
    observation = federation(softmax_regression, 1, learns=False)
    assert GAN().objection(replace(observation, model_before=None)) == "needs the global models of all rounds"
    assert "needs public samples" in str(GAN().objection(replace(observation, public=None)))
    assert "there are 10 classes" in str(GAN(target=10).objection(observation))
    gradient = replace(observation, local=replace(observation.local, only_gradient=True))
    assert "clients take no steps" in str(GAN().objection(gradient))
    words = replace(observation, inputs=replace(observation.inputs, dtype=torch.int64))
    assert "can be changed a little" in str(GAN().objection(words))
