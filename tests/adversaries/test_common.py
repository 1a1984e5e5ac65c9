"""What every adversary holds to. A new one joins by being listed in `KINDS`."""

import pytest
import torch

from flrl.adversaries import Adversary
from flrl.aggregation import Mean
from tests.adversaries.parts import KINDS, federation
from tests.toys import fit

every = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def plain() -> list[str]:
    return [record.digest for record in fit(federation())[1]]


@every
def test_nobody_malicious_leaves_the_run_as_it_is(name: str, plain: list[str]) -> None:
    for nobody in (0, 0.0, []):
        adversary = KINDS[name].make(clients=nobody)
        assert adversary.malicious(5, 0) == ()
    _, history = fit(federation(adversary))
    assert [record.digest for record in history] == plain
    assert history[-1].metrics["adversary/num"] == 0.0


@every
def test_two_malicious_clients_change_the_model_the_same_way_each_time(name: str, plain: list[str]) -> None:
    runs = [[record.digest for record in fit(federation(KINDS[name].make(clients=[1, 3])))[1]] for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][1] != plain[1]


@every
def test_a_run_goes_on_where_it_was(name: str) -> None:
    """What clients and colluders remember is in the state."""
    _, straight = fit(federation(KINDS[name].make(clients=[1, 3]), rounds=4))
    state, history = fit(federation(KINDS[name].make(clients=[1, 3]), rounds=1))
    _, resumed = fit(federation(KINDS[name].make(clients=[1, 3]), rounds=4), state=state, history=history)
    assert [record.digest for record in resumed] == [record.digest for record in straight]


@every
def test_only_rules_on_rows_go_with_colluders(name: str) -> None:
    adversary: Adversary = KINDS[name].make(clients=[1, 3])
    assert adversary.needs_rows == KINDS[name].rows
    if not adversary.needs_rows:
        federation(adversary, aggregator=Mean())
        return
    with pytest.raises(ValueError, match=r"sees each honest client's update, and strategy.aggregator=Mean keeps none"):
        federation(adversary, aggregator=Mean())
    with pytest.raises(ValueError, match=r"adversary.clients=5 leaves no honest client"):
        federation(KINDS[name].make(clients=5))


@every
def test_rows_are_not_changed_and_numbers_are_float64(name: str) -> None:
    adversary = KINDS[name].make(clients=1)
    if not callable(adversary):
        return
    rows = torch.tensor([[1.0, 2.0, -3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]).double()
    before = rows.clone()
    found = adversary(rows)
    assert (found.shape, found.dtype) == ((3,), torch.float64)
    assert torch.equal(rows, before)
    assert torch.equal(adversary(rows), found)
