"""Who is malicious and when; what an adversary may change, and what is recorded of it."""

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.adversaries import Adversary, AdversaryContext, Nobody, SignFlip, Threat
from flrl.aggregation import Krum, Median
from flrl.records import adversary_numbers
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.types import Broadcast, ClientReport, ClientUpdate, Tensors
from tests.toys import fit, make_worker

SIZES = (20, 30, 40, 10)


def average(rounds: int = 2, **options: Any) -> FedAvg:
    return FedAvg(rounds=rounds, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0), **options)


def ran(adversary: Adversary, *, rounds: int = 2, sizes: tuple[int, ...] = SIZES, **options: Any) -> Any:
    worker = make_worker(average(rounds, **options), sizes=sizes)
    threat = Threat.of(adversary, len(sizes), worker.seed)
    return fit(replace(worker, threat=threat))


def test_a_number_and_a_fraction_are_drawn_by_seed() -> None:
    drawn = [Adversary(clients=count).malicious(10, 3) for count in (1, 2, 3)]
    assert [len(clients) for clients in drawn] == [1, 2, 3]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    assert Adversary(clients=0.3).malicious(10, 3) == drawn[2]
    assert Adversary(clients=0.29).malicious(100, 0) == Adversary(clients=29).malicious(100, 0)
    assert len({Adversary(clients=3).malicious(10, seed) for seed in range(20)}) > 10
    assert Adversary(clients=[5, 2]).malicious(10, 0) == (2, 5)
    assert Adversary(clients=1).malicious(10, 0) != Adversary(clients=0.9).malicious(10, 0)
    assert Nobody(clients=3).malicious(10, 0) == ()
    assert [Adversary(clients=nobody).malicious(10, 0) for nobody in (0, 0.0, [])] == [()] * 3


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (1.0, "clients=1.0: a fraction must be at least 0 and below 1; a number of clients is written without a point"),
        (-1, "clients=-1: must be at least 0"),
        (11, "clients=11: there are only 10 clients"),
        (0.01, "clients=0.01: of 10 clients this is nobody"),
        ([3, 10], "clients: there is no client 10, only 0 to 9"),
        ([3, 3], "clients=.3, 3.: an id is there twice"),
        ("few", "clients=few: must be ids, a whole number or a fraction"),
    ],
)
def test_clients_that_do_not_exist_are_refused(clients: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"adversary.{message}"):
        Adversary(clients=clients).malicious(10, 0)


def test_rounds_are_inclusive() -> None:
    active = [Adversary(start=2, stop=4).active(round) for round in range(1, 7)]
    assert active == [False, True, True, True, False, False]
    with pytest.raises(ValueError, match=r"adversary.stop=1: must be at least adversary.start=2"):
        Adversary(start=2, stop=1)
    with pytest.raises(ValueError, match=r"adversary.start=0: must be at least 1"):
        Adversary(start=0)


def test_malicious_clients_misbehave_in_their_rounds_alone() -> None:
    _, plain = ran(Adversary())
    _, late = ran(SignFlip(clients=[1], start=2))
    _, early = ran(SignFlip(clients=[1], stop=1))
    assert late[0].digest == plain[0].digest != early[0].digest
    assert late[1].digest != plain[1].digest
    assert [record.metrics["adversary/num"] for record in late] == [0.0, 1.0]
    assert [record.metrics["adversary/num"] for record in early] == [1.0, 0.0]
    assert [report.client_id for report in late[1].reports if report.malicious] == [1]


class Counting(Adversary):
    """Adds the number of times that the client has sent something."""

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        times = memory.get("times", torch.zeros(())) + 1
        vector = torch.full_like(update.vectors["update"], float(times) * context.round)
        return replace(update, vectors={"update": vector}), {"times": times}


def test_a_malicious_client_remembers_its_own() -> None:
    state, _ = ran(Counting(clients=[2]), rounds=3)
    assert {name: float(tensor) for name, tensor in state.memory.get(2, {}).items()} == {"adversary/times": 3.0}
    assert state.memory.get(1, {}) == {}


class Summing(Adversary):
    """Colluders that send the sum of the honest rows, and count the rounds."""

    needs_rows = True
    seen: ClassVar[list[Any]] = []

    def collude(self, honest: Tensor, own: Tensor, state: Tensors, context: AdversaryContext) -> tuple[Tensor, Tensors]:
        self.seen.append((len(honest), len(own), context.present, {n: float(t) for n, t in state.items()}))
        return honest.sum(dim=0), {"rounds": state.get("rounds", torch.zeros(())) + 1}


def test_colluders_see_the_honest_rows_and_remember() -> None:
    Summing.seen.clear()
    state, history = ran(Summing(clients=[0, 2]), aggregator=Median())
    assert Summing.seen == [(2, 2, [0, 2], {}), (2, 2, [0, 2], {"rounds": 1.0})]
    assert float(state.variables["adversary/rounds"]) == 2.0
    assert history[-1].metrics["adversary/num"] == 2.0
    Summing.seen.clear()
    ran(Summing(clients=[0, 1, 2, 3]), aggregator=Median())  # nobody honest is there to be seen
    assert Summing.seen == []


class Shifting(Adversary):
    """A server that sends another model in round 2."""

    def broadcast(self, broadcast: Broadcast, context: AdversaryContext) -> Broadcast:
        assert torch.equal(context.sent, broadcast.vector)
        return replace(broadcast, vector=broadcast.vector + 1)


def test_a_server_may_tamper_with_what_it_sends() -> None:
    worker = make_worker(average(), sizes=SIZES)
    _, plain = fit(worker)
    _, history = fit(
        replace(make_worker(average(), sizes=SIZES), threat=Threat.of(Shifting(start=2), len(SIZES), worker.seed))
    )
    assert history[0].digest == plain[0].digest
    assert history[1].digest != plain[1].digest
    assert history[1].reports[0].checksum != plain[1].reports[0].checksum


class Changing(Adversary):
    """Keeps in itself what it should be given."""

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        self.rounds = getattr(self, "rounds", 0) + 1
        return update, memory


class Odd(Adversary):
    """Returns something else."""

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> Any:
        return update


def test_adversaries_of_ones_own_that_are_wrong_are_named() -> None:
    with pytest.raises(ValueError, match=r"adversary.*while client 1 trains|while client 1 trains"):
        ran(Changing(clients=[1]))
    with pytest.raises(Exception, match=r"adversary: Odd.update must return two things"):
        ran(Odd(clients=[1]))


def reports(malicious: set[int], filtered: set[int], rejected: set[int] = frozenset()) -> list[ClientReport]:  # type: ignore[assignment]
    return [
        ClientReport(c, 1, 1, {}, 0, "why" if c in rejected else None, malicious=c in malicious, filtered=c in filtered)
        for c in range(6)
    ]


def test_the_filter_is_measured_by_hand() -> None:
    """Of clients 1, 2, 3 that lie, 1 and 2 are left out, and the honest client 5."""
    found = adversary_numbers(reports({1, 2, 3}, {1, 2, 5}), exists=True, selects=True)
    assert found == {
        "adversary/num": 3.0,
        "aggregator/rejected": 3.0,
        "aggregator/recall": 2 / 3,
        "aggregator/precision": 2 / 3,
    }
    # What was rejected before never came to the rule.
    found = adversary_numbers(reports({1, 2}, {2}, {1}), exists=True, selects=True)
    assert (found["aggregator/recall"], found["aggregator/precision"], found["adversary/num"]) == (1.0, 1.0, 2.0)
    assert adversary_numbers(reports({1}, set()), exists=True, selects=True) == {
        "adversary/num": 1.0,
        "aggregator/rejected": 0.0,
        "aggregator/recall": 0.0,
    }
    assert adversary_numbers(reports(set(), {1}), exists=False, selects=True) == {"aggregator/rejected": 1.0}
    assert adversary_numbers(reports(set(), set()), exists=True, selects=False) == {"adversary/num": 0.0}


def test_the_record_says_who_lied_and_who_was_filtered() -> None:
    _, history = ran(SignFlip(clients=[1], scale=50), aggregator=Krum(num_malicious=0))
    filtered = [report.client_id for report in history[-1].reports if report.filtered]
    assert len(filtered) == 3
    assert 1 in filtered
    assert history[-1].metrics["aggregator/recall"] == 1.0
    assert history[-1].metrics["aggregator/precision"] == pytest.approx(1 / 3)
    assert np.isfinite(history[-1].metrics["train/loss"])
