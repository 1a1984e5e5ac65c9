"""Integer noise in shares: what clients send, what the server makes of the sum, and what it costs."""

import logging
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flrl.aggregation import Median
from flrl.privacy import Charged
from flrl.privacy.discrete import DiscreteGaussianSumEvent, SkellamEvent, rounded_l2
from flrl.sampling import AllClients, WeightedSampler
from flrl.strategies import FedAvg, Scaffold
from flrl.transforms import Ckks, DistributedDiscreteGaussian, Paillier, SecAgg, Skellam
from flrl.transforms.integer_noise import discrete_gaussian, rounded, skellam
from flrl.transforms.rotation import rotated, rotated_back, width
from tests.toys import fit, make_worker, setup_of
from tests.transforms.given import context, update

KINDS = (DistributedDiscreteGaussian, Skellam)
SGD = partial(torch.optim.SGD, lr=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Random numbers.


@pytest.mark.parametrize("deviation", [0.4, 1.0, 7.5])
@pytest.mark.parametrize("draw", [discrete_gaussian, skellam])
def test_noise_has_its_distribution(draw: Any, deviation: float) -> None:
    count = 100_000
    drawn = draw(deviation, count, seeded(3))
    assert torch.equal(drawn, drawn.round())
    k = np.arange(-200, 201)
    masses = np.exp(-(k**2) / 2 / deviation**2)
    if draw is skellam:
        masses = stats.skellam.pmf(k, deviation**2 / 2, deviation**2 / 2)
    masses = masses / masses.sum()
    variance = float((masses * k**2).sum())
    assert float(drawn.mean()) == pytest.approx(0, abs=4 * math.sqrt(variance / count))
    fourth = float((masses * k**4).sum())
    assert float((drawn**2).mean()) == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / count))
    often = masses * count >= 10
    seen = np.array([float((drawn == value).sum()) for value in k[often]])
    expected = masses[often] * count
    assert abs(seen.sum() - expected.sum()) < 60
    assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 0.01


def test_no_deviation_is_no_noise() -> None:
    assert discrete_gaussian(0.0, 3, seeded()).tolist() == skellam(0.0, 3, seeded()).tolist() == [0, 0, 0]


def test_rounding_has_no_bias_and_keeps_its_bound() -> None:
    vector = torch.tensor([0.25, -1.75, 3.0])
    drawn = torch.stack([rounded(vector.double(), 1e9, seeded(seed)) for seed in range(2000)])
    assert drawn.unique(dim=0).tolist() == [[0, -2, 3], [0, -1, 3], [1, -2, 3], [1, -1, 3]]
    assert drawn.mean(0).tolist() == pytest.approx([0.25, -1.75, 3.0], abs=0.04)
    short = torch.stack([rounded(vector.double(), 3.3, seeded(seed)) for seed in range(50)])
    assert short.unique(dim=0).tolist() == [[0, -1, 3]]
    with pytest.raises(ValueError, match=r"^no rounding of a vector of norm 3\.482 has a norm of at most 1$"):
        rounded(vector.double(), 1.0, seeded())


def test_few_roundings_pass_the_likely_bound() -> None:
    vector = torch.full((1024,), 0.5, dtype=torch.float64)
    largest = rounded_l2(16.0, 1024, 0.5)
    norms = [float(rounded(vector, 1e9, seeded(seed)).norm()) for seed in range(200)]
    assert np.mean(np.array(norms) > largest) < 0.5


# The rotation.


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_a_rotation_keeps_the_norm_and_can_be_undone(values: list[float], seed: int) -> None:
    vector = torch.tensor(values, dtype=torch.float64)
    there = rotated(vector, seed)
    assert float(there.norm()) == pytest.approx(float(vector.norm()), rel=1e-12, abs=1e-12)
    assert rotated_back(there, seed).tolist() == pytest.approx(values, abs=1e-10)


def test_a_rotation_spreads_one_number_over_all() -> None:
    for size in (64, 100, 127):
        one = torch.zeros(size, dtype=torch.float64)
        for place in (0, size - 1):
            alone = one.index_fill(0, torch.tensor([place]), 1.0)
            largest = max(float(rotated(alone, seed).abs().max()) for seed in range(5))
            assert 1 / math.sqrt(width(size)) - 1e-12 <= largest < 5 / math.sqrt(width(size))


# Client and server.


def told(clients: int, name: str = "noise", **options: Any) -> Any:
    return replace(context(name, **options), sent={"addends": torch.tensor(clients)})


def summed(transform: Any, updates: list[list[float]], expected: int | None = None) -> tuple[torch.Tensor, Any]:
    """The server's mean of what some clients of an expected number send."""
    clients = expected or len(updates)
    sent = [transform.client(update(*values), {}, told(clients, client_id=i))[0] for i, values in enumerate(updates)]
    mean = torch.stack([each.vectors["update"] for each in sent]).mean(0)
    after = replace(told(clients), received=float(len(sent)), expected=float(clients))
    vectors, _, numbers = transform.server({"update": mean}, {}, after)
    return vectors["update"], numbers


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_mean_is_that_of_the_clipped_updates(kind: Any) -> None:
    transform = kind(clip=5.0, noise_multiplier=1e-9, bits=20)
    updates = [[3.0, 4.0, 0.0], [0.0, -60.0, 80.0], [1.0, 1.0, -1.0]]
    mean, numbers = summed(transform, updates)
    wanted = [(3 + 0 + 1) / 3, (4 - 3 + 1) / 3, (0 + 4 - 1) / 3]
    assert mean.tolist() == pytest.approx(wanted, abs=2 * numbers["granularity"])
    assert numbers["granularity"] == pytest.approx(4 * math.sqrt(225 / 2) / math.sqrt((4**20 - 48) / 4), rel=1e-9)


def test_what_a_client_sends_are_integers_of_so_many_bits() -> None:
    transform = DistributedDiscreteGaussian(clip=5.0, noise_multiplier=3.0, bits=8)
    sent, memory, numbers = transform.client(update(3.0, 4.0, -12.0), {}, told(4))
    values = sent.vectors["update"]
    assert torch.equal(values, values.round())
    assert float(values.abs().max()) <= 128
    assert (sent.weight, sent.payload, memory, numbers) == (1.0, {"update": 3, "control": 4}, {}, {"clipped": 1.0})
    wide = DistributedDiscreteGaussian(clip=5.0, noise_multiplier=3.0, bits=12)
    assert wide.client(update(3.0, 4.0, -12.0), {}, told(4))[0].payload["update"] == 5  # 36 bits


def test_sums_are_modulo_so_many_bits() -> None:
    """Numbers that leave the range come back on its other side, and a sum of them is right where it is in the range."""
    transform = Skellam(clip=1.0, noise_multiplier=1.0, bits=4)
    assert transform._modulo(torch.tensor([7.0, 8.0, -8.0, -9.0, 24.0])).tolist() == [7, -8, -8, 7, -8]
    assert transform._modulo(torch.tensor([7.0 + 7.0 - 9.0])).tolist() == [5]
    wrapped = transform._modulo(torch.tensor([9.0])) + transform._modulo(torch.tensor([-6.0]))
    assert transform._modulo(wrapped).tolist() == [3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("survivors", "sending", "shares"), [(None, 4, 4), (2, 2, 2), (2, 4, 4), (3, 1, 3), (None, 2, 4)]
)
def test_the_noise_of_the_sum_is_what_was_asked_for_when_as_few_as_allowed_send(
    kind: Any, survivors: int | None, sending: int, shares: int
) -> None:
    """A share has variance (1.5 * 2)^2 / survivors; the server adds those that are missing."""
    transform = kind(clip=2.0, noise_multiplier=1.5, survivors=survivors)
    size, clients = 20_000, 4
    mean, numbers = summed(transform, [[0.0] * size] * sending, expected=clients)
    wanted = 3.0 * math.sqrt(shares / (survivors or clients)) / clients
    assert numbers["std"] == pytest.approx(wanted)
    assert numbers["missing"] == max(0, (survivors or clients) - sending)
    assert float(mean.std()) == pytest.approx(wanted, rel=0.03)
    assert stats.kstest(mean.numpy() / wanted, "norm").pvalue > 0.01


def test_the_sum_is_over_the_expected_number_of_clients() -> None:
    transform = Skellam(clip=9.0, noise_multiplier=0.0, bits=20)
    mean, _ = summed(transform, [[8.0, 4.0]] * 2, expected=4)
    assert mean.tolist() == pytest.approx([4.0, 2.0], abs=1e-3)


def test_noise_of_the_operating_system_is_other_noise_each_time() -> None:
    for kind in KINDS:
        secure = kind(clip=2.0, noise_multiplier=1.5, secure_noise=True)
        sent = [secure.client(update(*[0.0] * 4000), {}, told(4))[0].vectors["update"] for _ in range(2)]
        assert not torch.equal(*sent)
        grid = secure.grid(4000, 4, 1.5)
        assert float(sent[0].std()) == pytest.approx(grid.deviation, rel=0.06)
        seeded_noise = kind(clip=2.0, noise_multiplier=1.5)
        again = [seeded_noise.client(update(*[0.0] * 40), {}, told(4))[0].vectors["update"] for _ in range(2)]
        assert torch.equal(*again)
        assert any("the seed in config.yaml" in phrase for phrase in seeded_noise.not_covered)
        assert not any("the seed in config.yaml" in phrase for phrase in secure.not_covered)


def test_updates_that_are_not_finite_stay_so() -> None:
    transform = Skellam(clip=1.0, noise_multiplier=1.0)
    sent, _, numbers = transform.client(update(math.nan, 1.0), {}, told(4))
    assert (math.isnan(sent.vectors["update"][0]), sent.weight, numbers) == (True, 1.0, {"clipped": 0.0})


def test_a_round_names_its_event() -> None:
    """By hand: 16 clients, of which 12 send; 18 numbers, so K = 16; each adds a deviation of 2 / sqrt(12)."""
    setup = setup_of(strategy=fedavg({}), sizes=[10] * 16)
    charged = Charged(9, np.array([7, 0, 3]))
    gamma = 4 * math.sqrt((16**2 / 16 + 16 * 4 / 12) / ((4**16 - 16 * 16) / 4))
    l2 = rounded_l2(1 / gamma, 18, math.exp(-0.5))
    deviation = 2 / math.sqrt(12) / gamma
    for kind in KINDS:
        transform = kind(clip=1.0, noise_multiplier=None, survivors=12)
        (found,) = transform.events(setup, charged, 2.0)
        assert found.count == 7
        if kind is Skellam:
            wanted = (pytest.approx(l2 * math.sqrt(18)), pytest.approx(l2), pytest.approx(12 * deviation**2))
            assert found.event == SkellamEvent(*wanted)
        else:
            exact = (pytest.approx(l2 * math.sqrt(18)), pytest.approx(l2), pytest.approx(deviation), 12, 16, 18)
            assert found.event == DiscreteGaussianSumEvent(*exact)
        assert (transform.unit, transform.by_client, transform.cohorts) == ("client", True, "public")
        assert transform.described() == {"kind": kind.__name__, "clip": 1.0, "survivors": 12, "bits": 16}
        with pytest.raises(ValueError, match=r"noise_multiplier=null: set it, or privacy\.epsilon$"):
            transform.client(update(1.0), {}, told(4))


# Whole runs.


def fedavg(transforms: dict[str, Any], kind: Any = FedAvg, **options: Any) -> Any:
    settings = {"rounds": 2, "sampler": AllClients(), "server_optimizer": SGD, **options}
    return kind(transforms=transforms, **settings)


def digests(**transforms: Any) -> list[str]:
    return [record.digest for record in fit(make_worker(fedavg(transforms)))[1]]


@pytest.mark.parametrize(
    ("kind", "hiding"),
    [
        (DistributedDiscreteGaussian, SecAgg()),
        (DistributedDiscreteGaussian, Ckks(poly_modulus_degree=4096)),  # its error is below half an integer
        (Skellam, Paillier(key_bits=256)),
    ],
)
def test_sums_of_integers_are_the_same_when_they_are_encrypted_or_masked(kind: Any, hiding: Any) -> None:
    noise = kind(clip=1.0, noise_multiplier=0.5)
    plain = digests(noise=noise)
    assert digests(noise=noise, hiding=hiding) == plain
    assert digests(noise=kind(clip=1.0, noise_multiplier=0.6)) != plain


@pytest.mark.parametrize("kind", KINDS)
def test_with_little_noise_a_run_ends_where_it_would_without(kind: Any) -> None:
    """Clients weigh alike, as their sensitivity must: the comparison is with clients of equal size."""
    few = {"sizes": (30, 30, 30)}
    plain, _ = fit(make_worker(fedavg({}), **few))
    noisy, _ = fit(make_worker(fedavg({"noise": kind(clip=100.0, noise_multiplier=1e-9, bits=24)}), **few))
    assert float((plain.vector - noisy.vector).abs().max()) < 1e-3


NOISE = DistributedDiscreteGaussian(clip=1.0, noise_multiplier=1.0)


@pytest.mark.parametrize(
    ("transforms", "options", "why"),
    [
        ({"n": NOISE}, {"kind": Scaffold}, "the sensitivity of what Scaffold sends is not known"),
    ],
)
def test_what_it_does_not_go_with_is_refused(transforms: Any, options: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^strategy\.transforms\.distributed_discrete_gaussian: {why}"):
        setup_of(strategy=fedavg(transforms, **options)).check()


@pytest.mark.parametrize("options", [{"aggregator": Median()}, {"sampler": WeightedSampler(num=3)}, {"min_clients": 2}])
def test_what_no_mechanism_goes_with_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"^strategy\.(aggregator|sampler|min_clients)"):
        setup_of(strategy=fedavg({"n": NOISE}, **options)).check()


def test_more_survivors_than_clients_are_refused() -> None:
    many = Skellam(clip=1.0, noise_multiplier=1.0, survivors=4)
    with pytest.raises(
        ValueError, match=r"^strategy\.transforms\.skellam\.survivors=4: a round has at most 3 clients$"
    ):
        setup_of(strategy=fedavg({"n": many})).check()


def test_too_few_bits_for_the_cohort_are_refused() -> None:
    few = Skellam(clip=1.0, noise_multiplier=1.0, bits=2)
    with pytest.raises(ValueError, match=r"^strategy\.transforms\.skellam\.bits=2: too few for sums of 3 clients$"):
        setup_of(strategy=fedavg({"n": few})).check()


def test_a_server_that_sees_single_updates_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        setup_of(strategy=fedavg({"n": NOISE, "p": Paillier(key_bits=256)})).check()
        assert caplog.text == ""
        setup_of(strategy=fedavg({"n": NOISE})).check()
    assert "the server sees each client's update with its share of the noise alone" in caplog.text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"clip": 0.0}, "clip=0.0: must be positive and finite"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0: must be at least 0 and finite, or null"),
        ({"survivors": 0}, "survivors=0: must be at least 1, or null for all"),
        ({"bias": -0.1}, "bias=-0.1: must be at least 0 and below 1"),
        ({"bits": 25}, "bits=25: must be from 2 to 24"),
        ({"reach": math.nan}, "reach=nan: must be positive and finite"),
    ],
)
def test_settings_are_checked(options: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"^strategy.transforms.skellam.{why}$"):
        Skellam(**{"clip": 1.0, "noise_multiplier": 1.0, **options})
