"""The noise of each mechanism, its distribution and its size; what is counted of it; what it refuses."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from scipy import stats

from flrl.aggregation import Mean, Median
from flrl.devices import Devices, SineDays
from flrl.evaluation import Evaluator
from flrl.layout import ParameterLayout
from flrl.privacy import Charged, epsilon
from flrl.sampling import AllClients, PoissonSampler, PowerOfChoice, RoundRobin, UniformSampler
from flrl.strategies import FedAvg, FedNova
from flrl.transforms import (
    FTRL,
    AdaptiveDP,
    CentralDP,
    ClipNorm,
    DistributedDP,
    GaussianNoise,
    LocalDP,
    TopK,
    Transform,
)
from flrl.transforms.apply import on_server
from flrl.transforms.dp_ftrl import root_of_sums, sensitivity
from flrl.transforms.noise import laplace, normal
from flrl.types import Broadcast
from tests.toys import Normed, fit, make_worker, setup_of
from tests.transforms.given import context, update

SIZE = 20000
SGD = partial(torch.optim.SGD, lr=1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("draw", "law", "variance"), [(normal, stats.norm, 1.0), (laplace, stats.laplace, 2.0)])
def test_noise_has_its_distribution(draw: Any, law: Any, variance: float, secure: bool) -> None:
    """With the operating system's bits a test fails in one of 10^6 runs by chance."""
    drawn = draw(SIZE, None if secure else seeded()).numpy()
    least = 1e-6 if secure else 0.01
    assert drawn.shape == (SIZE,)
    assert stats.kstest(drawn, law.cdf).pvalue > least
    product = drawn[: SIZE // 2] * drawn[SIZE // 2 :]  # symmetric, if its factors are independent
    assert stats.kstest(product, -product).pvalue > least
    deviations = 5 if secure else 3
    assert abs(drawn.mean()) < deviations * math.sqrt(variance / SIZE)
    fourth = law.stats(moments="k").item() + 3
    assert abs(drawn.var() / variance - 1) < deviations * math.sqrt((fourth - 1) / SIZE)


def test_secure_noise_is_another_one_each_time_and_of_any_size() -> None:
    assert not torch.equal(normal(9, None), normal(9, None))
    assert [len(normal(size, None)) for size in (0, 1, 2, 7)] == [0, 1, 2, 7]
    assert torch.equal(normal(9, seeded()), normal(9, seeded()))


def server(mechanism: Any, *, received: float, expected: float, **more: Any) -> Any:
    layout = ParameterLayout(torch.nn.Linear(1, 1))
    given = replace(context("dp", layout=layout), received=received, expected=expected)
    vectors = {"update": torch.zeros(SIZE, dtype=torch.float64), **more}
    return mechanism.server(vectors, {}, given)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_central_noise_is_in_proportion_to_the_bound_over_the_expected_cohort(kind: Any, secure: bool) -> None:
    dp = CentralDP(clip=3.0, noise_multiplier=2.0, kind=kind, secure_noise=secure)
    found, _, numbers = server(dp, received=4.0, expected=8.0)
    law = stats.norm if kind == "gaussian" else stats.laplace
    assert numbers["scale"] == 0.75
    assert stats.kstest(found["update"].numpy() / 0.75, law.cdf).pvalue > 1e-6


def test_the_sum_is_divided_by_the_expected_number_of_clients() -> None:
    dp = CentralDP(clip=3.0, noise_multiplier=0.0)
    found, _, _ = server(dp, received=4.0, expected=8.0, further=torch.tensor([6.0], dtype=torch.float64))
    assert found["further"].tolist() == [3.0]  # the mean 6 of 4 clients is the sum 24


def test_local_noise_is_drawn_by_each_client() -> None:
    sent = replace(update(0.0, 0.0, 0.0, 0.0), vectors={"update": torch.zeros(SIZE, dtype=torch.float64)})
    dp = LocalDP(clip=2.0, noise_multiplier=1.5)
    one, other, again = (dp.client(sent, {}, context(client_id=client))[0].vectors["update"] for client in (1, 2, 1))
    assert stats.kstest(one.numpy() / 3, stats.norm.cdf).pvalue > 0.01
    assert abs(float(one @ other)) < 4 * 9 * math.sqrt(SIZE)
    assert torch.equal(one, again)


def test_shares_of_survivors_make_up_the_noise_and_the_server_adds_what_is_missing() -> None:
    dp = DistributedDP(clip=2.0, noise_multiplier=3.0, survivors=9)
    sent = replace(update(0.0, 0.0, 0.0, 0.0), vectors={"update": torch.zeros(SIZE, dtype=torch.float64)})
    share = dp.client(sent, {}, context(client_id=1))[0].vectors["update"]
    assert stats.kstest(share.numpy() / 2, stats.norm.cdf).pvalue > 0.01  # 3 * 2 / sqrt(9)
    added, _, numbers = server(dp, received=4.0, expected=10.0)
    assert numbers == {"missing": 5.0}
    assert stats.kstest(added["update"].numpy() / (6 * math.sqrt(5 / 9) / 10), stats.norm.cdf).pvalue > 0.01
    nothing, _, _ = server(dp, received=11.0, expected=10.0)
    assert not nothing["update"].any()


def test_the_adaptive_bound_follows_the_quantile_by_hand() -> None:
    dp = AdaptiveDP(clip=2.0, noise_multiplier=0.5, quantile=0.9, rate=0.2, count_noise=1e-9 + 0.25000001)
    with pytest.raises(ValueError, match=r"count_noise=0\.2: must be above half of noise_multiplier=0\.5"):
        server(AdaptiveDP(clip=2.0, noise_multiplier=0.5, count_noise=0.2), received=0.0, expected=10.0, within=None)
    quiet = AdaptiveDP(clip=2.0, noise_multiplier=0.0, quantile=0.9, rate=0.2, count_noise=1e-12)
    within = torch.tensor([0.25], dtype=torch.float64)  # mean of 8 clients, 6 of which are within: 0.5 or -0.5 each
    vectors, kept, numbers = server(quiet, received=8.0, expected=10.0, within=within)
    assert numbers["within"] == pytest.approx(0.25 * 8 / 10 + 0.5)
    assert float(kept["clip"]) == pytest.approx(2 * math.exp(-0.2 * (0.7 - 0.9)))
    assert set(vectors) == {"update"}
    sent = quiet.client(update(3.0, 0.0, 0.0, 0.0), {}, replace(context(), sent={"clip": torch.tensor(4.0)}))[0]
    assert sent.vectors["within"].tolist() == [0.5]
    sent = quiet.client(update(3.0, 0.0, 0.0, 0.0), {}, context())[0]
    assert sent.vectors["within"].tolist() == [-0.5]
    assert sent.vectors["update"].tolist() == [2.0, 0.0, 0.0, 0.0]
    assert dp.sends(kept) == kept


def test_both_sums_of_the_adaptive_bound_are_as_private_as_one() -> None:
    """Whitened, the two are one Gaussian: 1 / z^2 is the sum of (sensitivity / noise)^2, 1 / 2 for the count."""
    dp = AdaptiveDP(clip=1.0, noise_multiplier=1.5, count_noise=2.0)
    on_updates, on_count = dp._update_noise(10.0)
    assert on_updates**-2 + (0.5 / on_count) ** 2 == pytest.approx(1.5**-2)
    assert AdaptiveDP(clip=1.0, noise_multiplier=0.1)._update_noise(100.0)[1] == 5.0


def test_the_square_root_of_sums_and_its_inverse() -> None:
    rounds = 9
    c = np.tril(np.array([[root_of_sums(rounds)[abs(i - j)] for j in range(rounds)] for i in range(rounds)]))
    assert np.allclose(c @ c, np.tril(np.ones((rounds, rounds))))
    dp = FTRL(clip=0.5, noise_multiplier=2.0, bands=4, sensitivity=3.0)
    banded = np.where(np.subtract.outer(range(rounds), range(rounds)) < 4, c, 0)
    state: Any = {}
    rows, drawn = [], []
    for round in range(1, rounds + 1):
        given = replace(context("dp", round=round), received=1.0, expected=5.0)
        found, state, _ = dp.server({"update": torch.zeros(6, dtype=torch.float64)}, state, given)
        rows.append(found["update"].numpy())
        drawn.append(normal(6, context("dp", round=round).generator).numpy())
    assert np.allclose(np.array(rows), np.linalg.inv(banded) @ np.array(drawn) * 2.0 * 0.5 * 3.0 / 5.0)
    assert sorted(state) == ["update/1", "update/2", "update/3"]


def test_correlated_noise_of_sums_is_less() -> None:
    """The largest variance of a prefix sum over 64 rounds in which clients take part once: 4.7 for 64."""
    rounds, bands = 64, 64
    c = np.tril(np.array([[root_of_sums(bands)[abs(i - j)] for j in range(rounds)] for i in range(rounds)]))
    once = sensitivity([[1]], bands, rounds)
    noise = (np.cumsum(np.linalg.inv(c), axis=0) ** 2).sum(axis=1) * once**2
    assert once == pytest.approx(np.linalg.norm(c[:, 0]))
    assert noise.max() == pytest.approx(once**4)
    assert once**4 < 64 / 9


@pytest.mark.parametrize("bands", [1, 3, 8])
def test_the_sensitivity_of_participations_is_the_worst_by_brute_force(bands: int) -> None:
    rounds, rng = 8, np.random.default_rng(0)
    c = np.zeros((rounds, rounds))
    for i in range(rounds):
        c[i, max(0, i - bands + 1) : i + 1] = root_of_sums(bands)[: min(i + 1, bands)][::-1]
    for taken in ([1], [8], [1, 5], [2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]):
        bound = sensitivity([taken], bands, rounds)
        signs = np.zeros((rounds, 1))
        signs[np.array(taken) - 1] = 1
        assert np.linalg.norm(c @ signs) == pytest.approx(bound)  # attained where all point one way
        for _ in range(20):
            sent = np.zeros((rounds, 5))
            for round in taken:
                vector = rng.normal(size=5)
                sent[round - 1] = vector / np.linalg.norm(vector)
            assert np.linalg.norm(c @ sent) <= bound * (1 + 1e-12)
    apart = sensitivity([[1, 1 + bands]], bands, 2 * bands + 1)
    assert apart == pytest.approx(math.sqrt(2 * (root_of_sums(bands) ** 2).sum()))
    assert sensitivity([[1], [1, 2], [3]], 2, 4) == sensitivity([[1, 2]], 2, 4)


def run_of(sampler: Any, rounds: int = 10, num: int = 6) -> Any:
    given = {"num_clients": num, "sampling_seed": 3, "sizes": np.ones(num)}
    return SimpleNamespace(sampler=sampler, strategy=SimpleNamespace(rounds=rounds), **given)


CHARGED = Charged(7, np.array([2, 5, 0, 0, 0, 0]))
GAUSS, LAPLACE = dp_accounting.GaussianDpEvent, dp_accounting.LaplaceDpEvent
COMPOSED, POISSON = dp_accounting.SelfComposedDpEvent, dp_accounting.PoissonSampledDpEvent


@pytest.mark.parametrize(
    ("mechanism", "sampler", "event"),
    [
        (CentralDP(clip=1.0), PoissonSampler(probability=0.25), COMPOSED(POISSON(0.25, GAUSS(3.0)), 7)),
        (CentralDP(clip=1.0), AllClients(), COMPOSED(GAUSS(3.0), 7)),
        (CentralDP(clip=1.0, kind="laplace"), PoissonSampler(probability=0.5), COMPOSED(POISSON(0.5, LAPLACE(3.0)), 7)),
        (AdaptiveDP(clip=1.0), PoissonSampler(probability=0.25), COMPOSED(POISSON(0.25, GAUSS(3.0)), 7)),
        (LocalDP(clip=1.0), UniformSampler(num=2), COMPOSED(GAUSS(1.5), 5)),
        (DistributedDP(clip=1.0, survivors=2), UniformSampler(num=2), COMPOSED(GAUSS(3.0), 5)),
        (FTRL(clip=1.0, sensitivity=9.0), RoundRobin(num=2), COMPOSED(GAUSS(3.0), 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_counted(mechanism: Any, sampler: Any, event: Any) -> None:
    assert mechanism.events(run_of(sampler), CHARGED, 3.0) == [event]


def test_the_gaussian_mechanism_is_as_private_as_its_curve() -> None:
    """Balle, Wang, 2018: delta of epsilon is Phi(1/2z - epsilon z) - e^epsilon Phi(-1/2z - epsilon z)."""
    spent = epsilon(CentralDP(clip=1.0).events(run_of(AllClients()), Charged(1, np.zeros(6)), 2.0)[0], delta=1e-5)
    phi = stats.norm.cdf
    assert phi(0.25 - 2 * spent) - math.exp(spent) * phi(-0.25 - 2 * spent) == pytest.approx(1e-5, rel=1e-3)


def test_ftrl_takes_its_sensitivity_from_the_cohorts() -> None:
    turns = FTRL(clip=1.0, bands=2).filled(run_of(RoundRobin(num=2)))  # in rounds 1, 4, 7, 10, of which the last has 1
    assert turns == {"sensitivity": pytest.approx(math.sqrt(3 * 1.25 + 1))}
    assert FTRL(clip=1.0, bands=1).filled(run_of(AllClients())) == {"sensitivity": pytest.approx(math.sqrt(10))}
    uniform = FTRL(clip=1.0, bands=1).filled(run_of(UniformSampler(num=2)))["sensitivity"] ** 2
    assert 4 <= round(uniform) <= 9
    assert FTRL(clip=1.0, sensitivity=2.0).filled(run_of(AllClients())) == {}
    with pytest.raises(ValueError, match=r"sensitivity=2: the cohorts of strategy\.rounds=10 have 3\.162"):
        FTRL(clip=1.0, bands=1, sensitivity=2.0).check(run_of(AllClients()))


def private(mechanism: Any, *, before: Any = None, after: Any = None, **given: Any) -> Any:
    transforms = {**({"first": before} if before else {}), "dp": mechanism, **({"last": after} if after else {})}
    given = {"sampler": AllClients(), "rounds": 1, "server_optimizer": SGD, **given}
    kind = given.pop("kind", FedAvg)
    return setup_of(strategy=kind(transforms=transforms, **given), devices=given.pop("devices", None))


class Louder(Mean):
    """A mean that is none."""

    def combine(self, reducer: Any, state: Any, context: Any) -> Any:
        found = super().combine(reducer, state, context)
        return replace(found, vectors={name: 100 * vector for name, vector in found.vectors.items()})


class Reducing(Transform):
    """Has a reducer of its own."""

    def reducer(self, inner: Any, context: Any) -> Any:
        return inner


CENTRAL = CentralDP(clip=1.0, noise_multiplier=1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"aggregator": Median()}, "aggregator=Median: its sensitivity is not known"),
        ({"aggregator": Louder()}, "aggregator=Louder: its sensitivity is not known"),
        (
            {"before": Reducing()},
            r"strategy\.transforms\.first: reduces updates its own way, which",
        ),
        ({"after": Reducing()}, r"strategy\.transforms\.last: reduces updates its own way"),
        ({"aggregator": Mean(cosines=True)}, r"aggregator\.cosines=true: compares single updates"),
        ({"sampler": UniformSampler(num=2)}, "UniformSampler draws cohorts whose privacy is not counted here"),
        ({"sampler": PowerOfChoice(num=1, candidates=2)}, "PowerOfChoice draws or weighs by what clients report"),
        ({"min_clients": 2}, "min_clients=2: must be 1"),
        ({"kind": FedNova}, "FedNova cannot be combined with strategy.transforms.dp"),
        ({"after": TopK(share=0.5)}, r"strategy\.transforms\.last: error_feedback=true adds to what dp has bounded"),
        ({"before": TopK(share=0.5)}, r"strategy\.transforms\.dp: put it before first, whose result it must not"),
        ({"after": GaussianNoise(std=1.0)}, r"strategy\.transforms\.last: put it before dp"),
        ({"after": LocalDP(clip=1.0)}, "strategy.transforms.dp and strategy.transforms.last: one of them at a time"),
    ],
    ids=lambda value: "",
)
def test_what_leaves_the_bound_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        private(CENTRAL, **given).check()


def test_availability_is_refused_and_what_is_before_the_bound_is_not() -> None:
    setup = private(CENTRAL, before=ClipNorm(max_norm=3.0), sampler=PoissonSampler(probability=0.5))
    setup.check()
    with pytest.raises(ValueError, match=r"devices\.availability: must be null with differential privacy"):
        replace(setup, devices=Devices(availability=SineDays())).check()
    private(LocalDP(clip=1.0), before=ClipNorm(max_norm=3.0), sampler=UniformSampler(num=2)).check()


class Choosing(FedAvg):
    def task(self, state: Any, *given: Any) -> Any:
        return super().task(state, *given)


def test_a_strategy_that_plans_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Choosing\.task decides on tasks itself"):
        private(CENTRAL, kind=Choosing).check()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CentralDP(clip=0.0), r"dp\.clip=0\.0: must be positive and finite"),
        (lambda: CentralDP(clip=1.0, noise_multiplier=-1.0), r"dp\.noise_multiplier=-1\.0: must be at least 0"),
        (lambda: CentralDP(clip=1.0, kind="cauchy"), r"dp\.kind='cauchy': must be 'gaussian' or 'laplace'"),  # type: ignore[arg-type]
        (lambda: AdaptiveDP(clip=1.0, quantile=1.0), r"dp_adaptive\.quantile=1\.0: must be above 0 and below 1"),
        (lambda: AdaptiveDP(clip=1.0, rate=-1.0), r"dp_adaptive\.rate=-1\.0: must be at least 0"),
        (lambda: AdaptiveDP(clip=1.0, count_noise=0.0), r"dp_adaptive\.count_noise=0\.0: must be positive, or null"),
        (lambda: LocalDP(clip=-1.0), r"dp_local\.clip=-1\.0"),
        (lambda: DistributedDP(clip=1.0, survivors=0), r"dp_distributed\.survivors=0: must be at least 1"),
        (lambda: FTRL(clip=1.0, bands=0), r"dp_ftrl\.bands=0: must be at least 1"),
        (lambda: FTRL(clip=1.0, sensitivity=0.0), r"dp_ftrl\.sensitivity=0\.0: must be positive, or null"),
        (lambda: FTRL(clip=1.0, secure_noise=True), r"privacy\.secure_noise=true: dp_ftrl uses the noise"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_multiplier_that_nobody_has_set_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"dp\.noise_multiplier=null: set it, or privacy\.epsilon"):
        server(CentralDP(clip=1.0), received=1.0, expected=1.0)


def test_an_empty_cohort_is_a_round_of_noise() -> None:
    dp = CentralDP(clip=1.0, noise_multiplier=1.0)
    strategy = FedAvg(rounds=1, sampler=PoissonSampler(probability=1e-9), server_optimizer=SGD, transforms={"dp": dp})
    worker = make_worker(strategy)
    before = worker.model.vector.clone()
    state, history = fit(worker)
    assert history[-1].metrics["clients/num"] == 0
    assert float((state.vector - before).std()) == pytest.approx(1 / 3e-9, rel=0.5)


def test_what_follows_the_noise_is_not_told_how_many_have_sent() -> None:
    told: dict[str, float] = {}

    class Listening(Transform):
        def __init__(self, name: str) -> None:
            self.name = name

        def server(self, vectors: Any, state: Any, context: Any) -> Any:
            told[self.name] = context.received
            return vectors, state, {}

    layout = ParameterLayout(torch.nn.Linear(2, 1))
    zeros = {"update": torch.zeros(3, dtype=torch.float64)}
    transforms = {"first": Listening("first"), "dp": CENTRAL, "last": Listening("last")}
    sent = Broadcast(1, torch.zeros(3), 2.0, cohort=(0, 1))
    on_server(transforms, zeros, {}, sent, layout, 0, received=2.0, expected=5.0)
    assert told == {"last": 2.0, "first": 5.0}


@pytest.mark.parametrize("make", [CentralDP, LocalDP])
def test_noise_leaves_no_variance_below_zero(make: Any) -> None:
    noisy = make(clip=1.0, noise_multiplier=50.0)
    strategy = FedAvg(rounds=2, sampler=AllClients(), server_optimizer=SGD, transforms={"dp": noisy})
    worker = make_worker(strategy, module=Normed(), evaluator=Evaluator(batch_size=50))
    state, history = fit(worker)
    entries = {entry.name: state.vector[entry.slice] for entry in worker.model.layout.entries}
    assert entries["net.1.running_var"].min() == 0.0
    assert entries["net.1.running_var"].max() > 1.0
    assert entries["net.1.running_mean"].min() < 0.0
    assert entries["net.0.weight"].min() < 0.0
    assert all(math.isfinite(record.metrics["test/loss"]) for record in history)
