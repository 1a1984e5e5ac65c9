"""Membership attacks: who was in an overfitted client's training set, and nobody where the client had others."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.attacks import Observation
from flrl.attacks.confidence import class_scores, gradient_norms, log_odds, losses
from flrl.attacks.membership import Membership
from flrl.attacks.membership_lira import MembershipLiRA, likelihood_ratio, one_sided
from flrl.attacks.membership_loss import MembershipLoss
from flrl.attacks.membership_shadow import MembershipShadow, features
from flrl.attacks.samples import gathered, joined
from flrl.attacks.scoring import membership
from flrl.attacks.shadow import Shadows, dealt, engine
from flrl.data import TensorSource
from flrl.models import Classifier
from flrl.strategies import FedProx
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer
from flrl.transforms import ClipNorm
from tests.attacks.observing import client_update, found, observed, plain

N = 80
"""Members, and as many others."""


def quiet(share: float, text: str) -> None:
    pass


def noisy(num: int) -> TensorSource:
    """Five classes that can hardly be told apart: what a net knows of such samples it has by heart."""
    rng, labels = np.random.default_rng(0), np.arange(num) % 5
    inputs = 0.25 * rng.normal(size=(5, 20))[labels] + rng.normal(size=(num, 20))
    return TensorSource(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels))


def small(hidden: int = 32) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, hidden), nn.ReLU(), nn.Linear(hidden, 5))
    return Classifier(net=net, num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.1))


SOURCE = noisy(6 * N)
TRAINER = TracedTrainer(batch_size=10, local_epochs=25)
MEMBERS, OTHERS, PUBLIC, STRANGERS = np.split(np.arange(6 * N), [N, 2 * N, 5 * N])


@pytest.fixture(scope="module")
def overfit() -> tuple[Observation, np.ndarray]:
    observation, truth = observed(
        small(), SOURCE, MEMBERS, others=OTHERS, public=PUBLIC, trainer=TRAINER, strategy=plain()
    )
    after = observation.sent.double() + observation.update
    return replace(observation, model_before=lambda r: [observation.sent, after.float()][r - 1]), truth


KEPT: dict[Any, Tensor] = {}


@pytest.fixture
def trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shadow models are trained once for several tests."""
    train = Shadows.train

    def train_once(self: Shadows, samples: TensorSource, sets: Any, progress: Any) -> Tensor:
        key = (self.observation.seed, len(samples), *(part.tobytes() for part in sets))
        if key not in KEPT:
            KEPT[key] = train(self, samples, sets, progress)
        return KEPT[key]

    monkeypatch.setattr(Shadows, "train", train_once)


ATTACKS: dict[str, tuple[Membership, float]] = {  # with the least area under the curve
    "loss": (MembershipLoss(), 0.8),
    "gradient norm": (MembershipLoss(statistic="gradient_norm"), 0.8),
    "loss of both models": (MembershipLoss(rounds=2), 0.8),
    "global loss": (MembershipLoss(target="global"), 0.8),
    "lira online": (MembershipLiRA(shadows=16), 0.92),
    "lira online, own variances": (MembershipLiRA(shadows=16, fixed_variance=False), 0.88),
    "lira offline": (MembershipLiRA(online=False, shadows=16), 0.75),
    "shadow": (MembershipShadow(shadows=8), 0.75),
}


@pytest.mark.usefixtures("trained_once")
@pytest.mark.parametrize("name", ATTACKS)
def test_members_are_found_and_strangers_are_not(overfit: tuple[Observation, np.ndarray], name: str) -> None:
    (attack, area), (observation, truth) = ATTACKS[name], overfit
    scores = found(attack, observation).scores
    assert scores is not None
    assert scores.dtype == torch.float64
    numbers = membership(scores.numpy(), truth, seed=0)
    assert numbers["auc"] > area

    other = client_update(observation.module, SOURCE, STRANGERS, TRAINER, observation.sent)
    vector = (observation.sent.double() + other).float()
    unseen = replace(observation, update=other, model_before=lambda r: [observation.sent, vector][r - 1])
    scores = found(attack, unseen).scores
    assert scores is not None
    low, high = membership(scores.numpy(), truth, seed=0)["auc_interval"]  # type: ignore[misc]
    assert low < 0.5 < high


@pytest.mark.usefixtures("trained_once")
def test_lira_finds_more_than_the_loss(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, truth = overfit
    scores = [found(ATTACKS[name][0], observation).scores for name in ("loss", "lira online")]
    of_loss, of_lira = (membership(score.numpy(), truth, seed=0) for score in scores if score is not None)
    assert of_lira["auc"] > of_loss["auc"] + 0.05  # type: ignore[operator]
    assert of_lira["tpr_at_fpr_0.01"] > of_loss["tpr_at_fpr_0.01"]


def test_the_global_model_is_compared_with_shadows_from_the_initial_one(
    overfit: tuple[Observation, np.ndarray],
) -> None:
    """One epoch of shadows for each that clients make in all rounds, or as many as are asked for."""
    observation, _ = overfit
    local, asked = replace(observation.local, epochs=2), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shadows, "train", lambda self, *_, **rest: asked.append(rest) or torch.zeros(2, 5))
        late = replace(observation, round=3, local=local)
        for attack in (MembershipLiRA(target="global"), MembershipLiRA(target="global", epochs=7), MembershipLiRA()):
            attack.trained(late, SOURCE, [], quiet)
    assert [rest.get("epochs") for rest in asked[:3]] == [6, 7, None]
    assert [rest.get("round") for rest in asked[:3]] == [1, 1, None]
    assert asked[0]["start"] is observation.sent


def test_each_rounds_model_adds_to_the_loss(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    attack = MembershipLoss(rounds=2)
    samples = attack.candidates(observation)
    models = [(observation.sent.double() + observation.update).float(), observation.sent]
    expected = -(losses(observation, models[0], samples) + losses(observation, models[1], samples))
    assert torch.equal(found(attack, observation).scores, expected)  # type: ignore[arg-type]


# Confidence.


def test_losses_and_gradient_norms_are_those_of_single_samples(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    samples = gathered(SOURCE, np.arange(7))
    module = observation.module.train()
    norms = gradient_norms(observation, observation.sent, samples)
    values = losses(observation, observation.sent, samples)
    assert module.training
    net = small()
    for x, y, norm, value in zip(samples.inputs, samples.targets, norms, values, strict=True):
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(x[None]), y[None])
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        assert float(value) == pytest.approx(loss.item(), rel=1e-5)
        assert float(norm) == pytest.approx(float(gradients.double().norm()), rel=1e-5)


def test_log_odds_lose_no_digits_near_one() -> None:
    scores = torch.tensor([[80.0, 0.0, 0.0], [0.0, 80.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    odds = log_odds(scores, torch.tensor([0, 0, 2]))
    assert odds.tolist() == pytest.approx([80 - math.log(2), -80.0, -math.log(2)])


def test_features_are_odds_sorted_logarithms_and_the_class() -> None:
    scores = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64).log()
    expected = [math.log(0.2 / 0.8), math.log(0.7), math.log(0.2), math.log(0.1), 1, 0, 0]
    assert features(scores, torch.tensor([0]))[0].tolist() == pytest.approx(expected)


# The likelihood ratio.


SHADOWS = torch.tensor([[3.0, 0.0], [5.0, -2.0], [-1.0, 6.0], [1.0, 8.0]], dtype=torch.float64)
WITH = torch.tensor([[True, False], [True, False], [False, True], [False, True]])


def test_the_ratio_of_two_normal_densities_by_hand() -> None:
    """First candidate: with it mean 4, without 0, variances 2; second: 7 and -1, and 2. Densities at 3 and at 5."""
    ratio = likelihood_ratio(torch.tensor([3.0, 5.0]).double(), SHADOWS, WITH, fixed_variance=False)
    assert ratio.tolist() == pytest.approx([-0.25 * (1 - 9), -0.25 * (4 - 36)])
    wider = SHADOWS.clone()
    wider[:2, 0] = torch.tensor([1.0, 7.0])  # variance 18 with it
    ratio = likelihood_ratio(torch.tensor([3.0, 5.0]).double(), wider, WITH, fixed_variance=False)
    first = (-0.5 * math.log(18) - 1 / 36) - (-0.5 * math.log(2) - 9 / 4)
    assert ratio.tolist() == pytest.approx([first, 8.0])
    ratio = likelihood_ratio(torch.tensor([3.0, 5.0]).double(), wider, WITH, fixed_variance=True)
    pooled = (18 + 2) / 2  # with them; without them it is 2
    second = (-0.5 * math.log(pooled) - 4 / 20) - (-0.5 * math.log(2) - 36 / 4)
    assert float(ratio[1]) == pytest.approx(second)


def test_one_sided_scores_are_standard_deviations_above_models_without() -> None:
    scores = one_sided(torch.tensor([3.0, 5.0]).double(), SHADOWS, WITH, fixed_variance=False)
    assert scores.tolist() == pytest.approx([3 / math.sqrt(2), 6 / math.sqrt(2)])


# Shadow models.


def test_a_shadow_repeats_what_the_client_did_to_the_bit(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    large = replace(observation, trainer=TracedTrainer(batch_size=10, local_epochs=2, shuffle=True, lr_decay=0.5))
    shadows = Shadows(large)
    shadows.trainer = large.trainer
    got = shadows.train(SOURCE, [STRANGERS[:25], MEMBERS], quiet, round=3)
    for client, indices in enumerate((STRANGERS[:25], MEMBERS)):
        update = client_update(small(), SOURCE, indices, large.trainer, observation.sent, round=3, client=client)
        assert torch.equal(got[client], (observation.sent.double() + update).float())
    vectorized = Shadows(large)
    assert isinstance(vectorized.trainer, VectorizedTrainer)
    same = vectorized.train(SOURCE, [STRANGERS[:25], MEMBERS], quiet, round=3)
    assert torch.allclose(same, got, atol=1e-5)
    assert not torch.allclose(vectorized.train(SOURCE, [STRANGERS[:25], MEMBERS], quiet, round=2), got, atol=1e-3)
    assert torch.equal(large.layout.flatten(large.module), observation.sent)


def test_shadows_follow_the_algorithm_and_its_transforms(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    options: dict[str, Any] = vars(plain()) | {}
    parts = {name: options[name] for name in ("rounds", "sampler", "server_optimizer")}

    def length(strategy: Any) -> float:
        vectors = Shadows(replace(observation, strategy=strategy)).train(SOURCE, [MEMBERS], quiet)
        return float((vectors[0].double() - observation.sent.double()).norm())

    free = length(plain())
    assert length(FedProx(mu=1.0, **parts)) < 0.8 * free
    clipped = type(plain())(transforms={"clip": ClipNorm(max_norm=0.5)}, **parts)
    assert length(clipped) == pytest.approx(0.5, rel=1e-5)
    assert free > 1.0


def test_the_engine_is_vectorized_for_small_models_alone(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    eager = EagerTrainer(batch_size=3, gradient_clip_val=1.0, keep_optimizer_state=True)
    chosen = engine(replace(observation, trainer=eager), plain())
    assert isinstance(chosen, VectorizedTrainer)
    assert (chosen.batch_size, chosen.gradient_clip_val, chosen.keep_optimizer_state) == (3, 1.0, False)
    large, _ = observed(small(4000), SOURCE, MEMBERS[:1], unseen=True)
    assert type(engine(large, plain())) is TracedTrainer
    normed = nn.Sequential(nn.Linear(20, 5), nn.BatchNorm1d(5))
    module = Classifier(net=normed, num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.1))
    assert type(engine(observed(module, SOURCE, MEMBERS[:1], unseen=True)[0], plain())) is TracedTrainer
    own = LightningTrainer(batch_size=3)
    assert engine(replace(observation, trainer=own), plain()) is own


def test_sets_are_pairs_without_a_common_element_and_use_all_equally() -> None:
    sets = dealt(10, 99, 8, np.random.default_rng(0))
    assert [len(part) for part in sets] == [5] * 8
    assert np.bincount(np.concatenate(sets)).tolist() == [4] * 10
    assert all(sorted([*a, *b]) == list(range(10)) for a, b in zip(sets[::2], sets[1::2], strict=True))
    sets = dealt(9, 2, 8, np.random.default_rng(0))  # four of each permutation, of which one element is left over
    assert [len(part) for part in sets] == [2] * 8
    counts = np.bincount(np.concatenate(sets), minlength=9)
    assert counts.tolist().count(2) == 7
    assert counts.min() == 1  # what the first leaves over comes first in the second
    assert all(not set(a.tolist()) & set(b.tolist()) for a, b in zip(sets[::2], sets[1::2], strict=True))


def test_too_few_candidates_are_filled_up_with_public_samples(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    attack = MembershipLiRA(shadows=4)
    candidates = attack.candidates(observation)
    samples, sets = attack.sets(replace(observation, num_samples=100), candidates, np.random.default_rng(0))
    assert len(samples) == 2 * N + len(PUBLIC)
    assert [(int((part < 2 * N).sum()), len(set(part.tolist()))) for part in sets] == [(N, 100)] * 4
    assert torch.equal(samples.inputs[2 * N :], SOURCE.inputs[PUBLIC])
    assert attack.sets(observation, candidates, np.random.default_rng(0))[0] is candidates


def test_scores_of_joined_samples_are_those_of_each(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    parts = [gathered(SOURCE, MEMBERS), gathered(SOURCE, OTHERS)]
    both = class_scores(observation, observation.sent, joined(*parts))
    alone: list[Tensor] = [class_scores(observation, observation.sent, part) for part in parts]
    assert torch.allclose(both, torch.cat(alone), atol=1e-6)


# Refusals.


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (MembershipLoss, {"statistic": "norm"}, "attack.statistic='norm': must be 'loss' or 'gradient_norm'"),
        (MembershipLoss, {"rounds": 0}, "attack.rounds=0: must be at least 1"),
        (MembershipLoss, {"target": "server"}, "attack.target='server': must be 'client' or 'global'"),
        (MembershipShadow, {"hidden": 0}, "attack.hidden=0: must be at least 1"),
        (MembershipShadow, {"shadows": 3}, "attack.shadows=3: must be an even number, at least 2"),
        (MembershipLiRA, {"shadows": 0}, "attack.shadows=0: must be an even number, at least 2"),
        (MembershipLiRA, {"epochs": 0}, "attack.epochs=0: must be at least 1, or null"),
        (
            MembershipLiRA,
            {"shadows": 2, "fixed_variance": False},
            "attack.shadows=2: a variance for each candidate needs at least 4",
        ),
    ],
)
def test_settings_are_checked(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="attack") as error:
        kind(**settings)
    assert str(error.value) == said


def test_what_does_not_apply_is_said(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    gradient = replace(observation, local=replace(observation.local, only_gradient=True))
    cases: list[tuple[Membership, Observation, str]] = [
        (MembershipLoss(), replace(observation, candidates=None), "needs candidates"),
        (MembershipLoss(), gradient, "no local model: attack.target=global"),
        (MembershipLoss(), replace(observation, clients=[0, 1]), "needs the update of one client"),
        (MembershipLoss(target="global"), replace(observation, model_before=None), "needs the global model after"),
        (MembershipLoss(rounds=3), observation, "attack.rounds=3: up to round 1 there are 2"),
        (MembershipLoss(rounds=2), replace(observation, model_before=None), "needs the global models of earlier"),
        (MembershipLoss(), replace(observation, module=pl.LightningModule()), "LightningModule has no forward"),
        (MembershipLoss(), replace(observation, inputs=replace(observation.inputs, num_classes=None)), "needs classes"),
        (MembershipShadow(), replace(observation, public=None), "needs public samples"),
        (MembershipLiRA(online=False), replace(observation, public=None), "needs public samples"),
        (MembershipLiRA(target="global"), gradient, "no local training to be repeated"),
    ]
    for attack, given, said in cases:
        assert said in str(attack.objection(given)), said
    assert MembershipLoss(target="global").objection(replace(gradient, clients=[0, 1])) is None
    assert MembershipLiRA().objection(replace(observation, public=None)) is None


def test_candidates_in_no_shadows_set_are_too_many(overfit: tuple[Observation, np.ndarray]) -> None:
    observation, _ = overfit
    with pytest.raises(ValueError, match=r"attack.shadows=2: too few for 160 candidates of whom each shadow has 5"):
        MembershipLiRA(shadows=2).find(replace(observation, num_samples=5), quiet)
