"""Attacks on updates: documented values, values by hand, and what each of them is optimal for."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flrl.adversaries import (
    ALIE,
    IPM,
    MAPF,
    Adversary,
    FangKrum,
    FangTrimmedMean,
    FreeRider,
    Gaussian,
    Mimic,
    MinMax,
    MinSum,
    ModelReplacement,
    SignFlip,
    Zero,
)
from flrl.adversaries.alie import z_max
from flrl.adversaries.updates import plain_context
from flrl.aggregation import Krum, Median, TrimmedMean
from flrl.layout import ParameterLayout
from flrl.types import ClientUpdate

X = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (SignFlip(), [-4, -5, -6]),  # the first three: ByzFL 0.0.11 documents them for these rows
        (IPM(scale=2), [-8, -10, -12]),
        (ALIE(tau=1.5), [8.5, 9.5, 10.5]),
        (ALIE(tau=-1.5), [-0.5, 0.5, 1.5]),  # Baruch et al.: mean - z std
        (SignFlip(scale=3), [-12, -15, -18]),
        (Zero(), [0, 0, 0]),
        (FreeRider(kind="zero"), [0, 0, 0]),
        (MAPF(kind="history"), [0, 0, 0]),
        (ModelReplacement(), [16, 20, 24]),  # three honest clients and one malicious one
        (ModelReplacement(scale=5), [20, 25, 30]),
        # The mean (4, 5, 6) minus gamma (3, 3, 3): from (7, 8, 9) no farther than 6 sqrt 3, which is gamma = 1.
        (MinMax(), [1, 2, 3]),
        # Squared distances sum up to 135 at most; those from the mean to 54, so 3 gamma^2 27 = 81.
        (MinSum(), [1, 2, 3]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Adversary) else "",
)
def test_documented_values(attack: Any, expected: list[float]) -> None:
    assert attack(X).tolist() == pytest.approx(expected, abs=1e-12)


def test_one_row_is_a_clients_own_update() -> None:
    assert SignFlip()([1.0, -2.0]).tolist() == [-1.0, 2.0]


def test_min_max_and_min_sum_by_hand() -> None:
    """Of 0, 2, 4 the mean 2 moves down to 0, which is 4 from 4; squared distances sum up to 20 there, as from 0."""
    for perturbation in ("unit", "sign", "std"):
        for attack in (MinMax, MinSum):
            assert attack(perturbation=perturbation)([[0.0], [2.0], [4.0]]).tolist() == pytest.approx([0.0])
    assert MinMax()([[3.0, 1.0]]).tolist() == [3.0, 1.0]  # one row has no deviation


@pytest.mark.parametrize("perturbation", ["unit", "std", "sign"])
def test_min_max_and_min_sum_are_as_far_as_their_bounds_allow(perturbation: Any) -> None:
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    among = torch.cdist(rows, rows)
    farthest = torch.cdist(rows, MinMax(perturbation=perturbation)(rows)[None])
    assert float(farthest.max()) == pytest.approx(float(among.max()), rel=1e-9)
    sums = torch.cdist(rows, MinSum(perturbation=perturbation)(rows)[None]).square().sum()
    assert float(sums) == pytest.approx(float(among.square().sum(dim=1).max()), rel=1e-9)


def test_alie_with_the_papers_z() -> None:
    """50 workers, 24 of them corrupt: s = 2, the quantile of 24 / 26."""
    assert z_max(26, 24) == pytest.approx(1.4260768, abs=1e-6)
    rows = torch.randn(26, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(ALIE()(rows, num_malicious=24), rows.mean(dim=0) + 1.4260768 * rows.std(dim=0), atol=1e-6)
    assert ALIE()([[1.0, 2.0]]).tolist() == [1.0, 2.0]


def test_krum_chooses_what_fang_sends() -> None:
    for seed, malicious in itertools.product(range(5), (1, 2, 3)):
        rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        sent = FangKrum()(rows, num_malicious=malicious)
        assert len(sent.abs().unique()) == 1
        assert torch.equal(sent.sign(), -rows.mean(dim=0).sign())
        everybody = torch.cat([rows, sent.expand(malicious, -1)])
        if float(sent.abs()[0]) > 2e-5:  # with one of them Krum may never choose it
            assert torch.allclose(Krum(num_malicious=malicious)(everybody), sent)
    assert float(FangKrum()(rows, num_malicious=3).abs()[0]) > 0.01


def test_fang_goes_beyond_the_honest_numbers() -> None:
    """Means are 5, -5, 2, -2: below 4, above -4, below -1, above 1."""
    rows = torch.tensor([[4.0, -6.0, -1.0, -5.0], [6.0, -4.0, 5.0, 1.0]])
    for seed in range(20):
        a, b, c, d = FangTrimmedMean()(rows, seed=seed).tolist()
        assert 2 <= a <= 4
        assert -4 <= b <= -2
        assert -2 <= c <= -1
        assert 1 <= d <= 2
    context = replace(plain_context(rows.double(), 3, 0), honest=(0, 1))
    sent, _ = FangTrimmedMean().collude(rows.double(), rows[:1].double().expand(3, -1), {}, context)
    assert len({tuple(row) for row in sent.tolist()}) == 3
    everybody = torch.cat([rows.double(), sent])
    for rule in (Median(), TrimmedMean(num_malicious=1)):
        moved = rule(everybody) - rows.double().mean(dim=0)
        assert torch.equal(moved.sign(), torch.tensor([-1.0, 1.0, -1.0, 1.0]).double())


def test_mimic_copies_who_is_farthest_along_the_direction_of_most_variance() -> None:
    rows = [[0.0, 1.0], [0.1, -1.0], [-0.1, 8.0], [0.0, 0.5]]
    assert all(Mimic()(rows, seed=seed).tolist() == [-0.1, 8.0] for seed in range(5))


def test_mimic_keeps_to_one_client_after_the_warm_up() -> None:
    attack, state = Mimic(warmup=2), {}
    context = replace(plain_context(torch.zeros(3, 2), 1, 0), honest=(4, 5, 7))
    rows = [[[0.0, 1.0], [0.0, -1.0], [0.0, 9.0]]] * 2 + [[[0.0, 50.0], [0.0, 2.0], [0.0, 1.0]]]
    sent = []
    for each in rows:
        row, state = attack.collude(torch.tensor(each).double(), torch.zeros(1, 2).double(), state, context)
        sent.append(row.tolist())
    assert sent == [[0.0, 9.0], [0.0, 9.0], [0.0, 1.0]]
    assert (int(state["target"]), int(state["rounds"])) == (7, 2)
    assert state["mean"].tolist() == [0.0, 3.0]
    absent = replace(context, honest=(4, 5, 6))
    row, _ = attack.collude(torch.tensor(rows[2]).double(), torch.zeros(1, 2).double(), state, absent)
    assert row.tolist() == [0.0, 50.0]


def update(vector: list[float], weight: float = 1.0) -> ClientUpdate:
    return ClientUpdate(3, weight, {"update": torch.tensor(vector).double(), "c": torch.ones(1)}, {}, 1)


def test_free_riders_send_what_the_model_has_changed_by() -> None:
    rider, context = FreeRider(std=0.0), plain_context(torch.zeros(3, 2), 1, 0)
    first, memory = rider.update(update([5.0, 5.0]), {}, replace(context, sent=torch.tensor([1.0, 1.0])))
    second, _ = rider.update(update([5.0, 5.0]), memory, replace(context, sent=torch.tensor([3.0, 0.5])))
    assert first.vectors["update"].tolist() == [0.0, 0.0]
    assert second.vectors["update"].tolist() == [2.0, -0.5]
    assert second.vectors["c"].tolist() == [1.0]
    turned = MAPF(kind="history", scale=10.0)
    again, _ = turned.update(update([5.0, 5.0]), memory, replace(context, sent=torch.tensor([3.0, 0.5])))
    assert again.vectors["update"].tolist() == [-20.0, 5.0]


def test_fake_clients_drag_towards_one_base() -> None:
    attack, context = MAPF(scale=2.0, std=3.0), plain_context(torch.zeros(3, 4), 1, 0)
    own = torch.ones(4).double()
    here = [attack.changed(own, replace(context, client_id=c, sent=torch.full((4,), 0.5))) for c in (3, 8)]
    assert torch.equal(here[0], here[1])
    at_zero = attack.changed(own, context)
    assert torch.allclose(here[0], at_zero - 1.0)
    assert 1.0 < float(attack(torch.zeros(1, 10_000)).std()) / 6.0 * 1.02
    assert not torch.equal(at_zero, attack.changed(own, replace(context, seed=1)))


def test_the_model_is_replaced_under_the_mean() -> None:
    """Weights 2 of 10, one of two malicious clients: five times the update, shared by two."""
    context = replace(plain_context(torch.zeros(3, 2), 2, 0), total_weight=10.0)
    sent, _ = ModelReplacement().update(update([1.0, -2.0], weight=2.0), {}, context)
    assert sent.vectors["update"].tolist() == [2.5, -5.0]
    bounded, _ = ModelReplacement(max_norm=2.0).update(update([3.0, -4.0], weight=2.0), {}, context)
    assert bounded.vectors["update"].tolist() == pytest.approx([1.2, -1.6])
    short, _ = ModelReplacement(max_norm=2.0, scale=0.1).update(update([3.0, -4.0]), {}, context)
    assert short.vectors["update"].tolist() == pytest.approx([0.3, -0.4])


def test_noise_follows_the_seed_and_spares_buffers() -> None:
    drawn = [Gaussian(mean=2.0, std=3.0)(torch.zeros(1, 20_000), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert float(drawn[0].mean()) == pytest.approx(2.0, abs=0.1)
    assert float(drawn[0].std()) == pytest.approx(3.0, abs=0.1)
    layout = ParameterLayout(nn.BatchNorm1d(2))  # four trainable numbers, then mean and variance
    own: Tensor = torch.arange(8.0).double()
    context = replace(plain_context(torch.zeros(1, 8), 1, 0), layout=layout)
    assert Gaussian().changed(own, context)[4:].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert Gaussian(add=True, std=0.0).changed(own, context).tolist() == own.tolist()
    assert FreeRider(kind="noise").changed(own, context)[4:].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignFlip(scale=0.0), r"adversary.scale=0.0: must be above 0 and finite"),
        (lambda: IPM(scale=float("inf")), r"adversary.scale=inf: must be above 0 and finite"),
        (lambda: ALIE(tau=float("nan")), r"adversary.tau=nan: must be finite"),
        (lambda: Gaussian(std=-1.0), r"adversary.std=-1.0: must be at least 0 and finite"),
        (lambda: FreeRider(kind="nothing"), r"adversary.kind='nothing': must be 'zero', 'noise' or 'delta'"),
        (lambda: MAPF(kind="nothing"), r"adversary.kind='nothing': must be 'base', 'history' or 'random'"),
        (lambda: MinMax(perturbation="mean"), r"adversary.perturbation='mean': must be 'unit', 'std' or 'sign'"),
        (lambda: Mimic(warmup=0), r"adversary.warmup=0: must be at least 1"),
        (lambda: FangTrimmedMean(factor=1.0), r"adversary.factor=1.0: must be above 1 and finite"),
        (lambda: ModelReplacement(max_norm=0.0), r"adversary.max_norm=0.0: must be above 0 and finite"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
