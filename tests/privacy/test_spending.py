"""What a run spends: counted, shown in every round, stopped before a budget, calibrated to it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dp_accounting import DpEvent

from flrl.privacy import Charged, Privacy, Spending, epsilon, sampled_gaussian


class Counted:
    """A sampled Gaussian, counted by rounds or by the participations of clients."""

    unit, secure_noise, not_covered = "client", False, ("train/loss",)

    def __init__(self, noise_multiplier: float | None, *, by_client: bool = False) -> None:
        self.noise_multiplier, self.by_client = noise_multiplier, by_client

    def events(self, setup: Any, charged: Charged, noise_multiplier: float) -> Sequence[DpEvent]:
        if self.by_client:
            return [sampled_gaussian(noise_multiplier, 1.0, charged.most())]
        return [sampled_gaussian(noise_multiplier, 0.1, charged.releases)]

    def filled(self, setup: Any) -> dict[str, float]:
        return {}

    def described(self) -> dict[str, Any]:
        return {"kind": "gaussian"}


def spending(mechanism: Counted, *, rounds: int = 100, **privacy: Any) -> Spending:
    setup: Any = SimpleNamespace(num_clients=3, strategy=SimpleNamespace(rounds=rounds))
    return Spending("here", mechanism, setup, Privacy(**privacy), lambda round: np.array([0, round % 2 + 1]))


@pytest.mark.parametrize("accountant", [pytest.param("pld", marks=pytest.mark.slow), "rdp"])
def test_what_is_shown_is_never_below_the_value_and_the_last_round_is_exact(accountant: Any) -> None:
    spent = spending(Counted(1.0), accountant=accountant)
    for count, most in ((1, 1.0002), (16, 1.0002), (17, 1.05), (99, 1.04)):
        exact = epsilon(sampled_gaussian(1.0, 0.1, count), delta=1e-5, accountant=accountant)
        assert exact - 1e-9 <= spent.shown(spent.planned(count)) <= most * exact
    last = epsilon(sampled_gaussian(1.0, 0.1, 100), delta=1e-5, accountant=accountant)
    assert spent.shown(spent.planned(100)) == spent.exact(spent.planned(100)) == last
    assert spent.shown(spent.none()) == 0


@pytest.mark.slow
def test_few_values_are_computed_for_many_rounds() -> None:
    spent = spending(Counted(1.0), rounds=1000, accountant="rdp")
    shown = [spent.shown(spent.planned(count)) for count in range(1, 1001)]
    assert sorted(shown) == shown
    assert len(set(shown)) < 70


def test_a_budget_is_passed_by_the_round_by_which_the_exact_value_passes_it() -> None:
    budget = epsilon(sampled_gaussian(1.0, 0.1, 50), delta=1e-5, accountant="rdp")
    spent = spending(Counted(1.0), epsilon=budget, accountant="rdp")
    within = [spent.within(spent.planned(count)) for count in (49, 50, 51)]
    assert within == [True, True, False]
    assert spent.shown(spent.planned(49)) <= budget


@pytest.mark.slow
def test_the_noise_that_a_budget_asks_for_keeps_it_and_less_does_not() -> None:
    budgeted = spending(Counted(None), rounds=20, epsilon=2.0, accountant="rdp")
    noise = budgeted.calibrated()
    for multiplier, keeps in ((noise, True), (noise - 1e-3, False)):
        spent = spending(Counted(multiplier), rounds=20, epsilon=2.0, accountant="rdp")
        assert spent.within(spent.planned(20)) is keeps
    with pytest.raises(ValueError, match=r"here\.noise_multiplier=null: set it, or privacy\.epsilon"):
        spending(Counted(None)).calibrated()


def test_of_a_mechanism_counted_by_clients_the_one_that_took_part_most_often_counts() -> None:
    spent = spending(Counted(4.0, by_client=True), rounds=5, accountant="rdp")
    charged = spent.planned(5)
    assert charged.participations.tolist() == [5, 2, 3]
    assert spent.exact(charged) == epsilon(sampled_gaussian(4.0, 1.0, 5), delta=1e-5, accountant="rdp")
    assert spent.after(spent.none(), np.array([2])).participations.tolist() == [0, 0, 1]


def test_the_summary_names_what_is_not_covered() -> None:
    found = spending(Counted(1.0), accountant="rdp").summary(Charged(2, np.zeros(3, np.int64)))
    assert found["epsilon"] == epsilon(sampled_gaussian(1.0, 0.1, 2), delta=1e-5, accountant="rdp")
    assert (found["mechanism"], found["unit"], found["kind"], found["not_covered"]) == (
        "here",
        "client",
        "gaussian",
        ["train/loss"],
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, r"privacy\.epsilon=0.0: must be positive and finite"),
        ({"delta": 1.0}, r"privacy\.delta=1.0: must be above 0 and below 1"),
        ({"accountant": "zcdp"}, r"privacy\.accountant='zcdp': must be 'pld' or 'rdp'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Privacy(**settings)
