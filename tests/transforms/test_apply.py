"""The way through several transforms: order, memory, state, random numbers, names."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.transforms import ClipNorm, Context, Transform
from flrl.transforms.apply import on_client, on_server
from flrl.types import Broadcast, ClientTask, ClientUpdate
from tests.toys import fit, make_worker
from tests.transforms.given import LAYOUT, update

SGD = partial(torch.optim.SGD, lr=1.0)
SENT = Broadcast(round=4, vector=torch.zeros(4), total_weight=7.0, cohort=(3, 5))


class Scaled(Transform):
    """Sends twice the update."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        return replace(update, vectors={"update": update.vectors["update"] * 2}), memory, {}

    def server(self, vectors: Any, state: Any, context: Context) -> Any:
        return {"update": vectors["update"] / 2}, state, {}


class Shifted(Transform):
    """Sends the update plus one."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        return replace(update, vectors={"update": update.vectors["update"] + 1}), memory, {}

    def server(self, vectors: Any, state: Any, context: Context) -> Any:
        return {"update": vectors["update"] - 1}, state, {}


class Counting(Transform):
    """Each client and the server remember how often they were here."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        times = memory.get("times", torch.zeros(())) + 1
        return update, {"times": times}, {"times": float(times)}

    def server(self, vectors: Any, state: Any, context: Context) -> Any:
        times = state.get("times", torch.zeros(())) + 1
        return vectors, {"times": times}, {"rounds": float(times)}


class Drawing(Transform):
    """Reports a random number."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        return update, {}, {"drawn": float(torch.rand((), generator=context.generator))}

    def server(self, vectors: Any, state: Any, context: Context) -> Any:
        return vectors, {}, {"server": float(torch.rand((), generator=context.generator))}


def averaging(rounds: int = 1, **transforms: Transform) -> FedAvg:
    return FedAvg(rounds=rounds, sampler=AllClients(), server_optimizer=SGD, transforms=transforms)


@pytest.mark.parametrize("names", [["scaled", "shifted"], ["shifted", "scaled"]])
def test_what_was_done_last_is_undone_first(names: list[str]) -> None:
    """Twice and plus one do not commute: undone in the other order, every number would be off."""
    both = {"scaled": Scaled(), "shifted": Shifted()}
    plain, transformed = (
        fit(make_worker(averaging(**used)))[0].vector for used in ({}, {name: both[name] for name in names})
    )
    torch.testing.assert_close(transformed, plain, rtol=0, atol=1e-6)


def test_transforms_are_applied_in_their_order() -> None:
    worker = make_worker(averaging(scaled=Scaled(), shifted=Shifted()), sizes=(8,))
    task, broadcast = ClientTask(1, 0, 8, 8.0), Broadcast(1, worker.model.vector.clone(), 8.0)
    sent = worker.train(broadcast, [task], lambda report: None)[0].result()[0]["update"]
    plain = replace(worker, strategy=averaging())
    alone = plain.train(broadcast, [task], lambda report: None)[0].result()[0]["update"]
    torch.testing.assert_close(sent, 2 * alone + 1, rtol=0, atol=1e-12)


def test_each_has_a_memory_and_a_state_of_its_own() -> None:
    state, history = fit(make_worker(averaging(3, first=Counting(), second=Counting(), none=Scaled())))
    assert [record.metrics["transforms/first/times"] for record in history] == [3.0, 6.0, 9.0]
    assert [record.metrics["transforms/second/rounds"] for record in history] == [1.0, 2.0, 3.0]
    assert {name: float(value) for name, value in state.variables.items()} == {
        "transforms/first/times": 3.0,
        "transforms/second/times": 3.0,
    }
    assert [float(state.memory[client]["transforms/first/times"]) for client in state.memory] == [3.0, 3.0, 3.0]
    assert sorted(state.memory[0]) == ["transforms/first/times", "transforms/second/times"]


def test_random_numbers_follow_round_client_and_name_alone() -> None:
    def drawn(name: str, client_id: int, broadcast: Broadcast, **before: Transform) -> float:
        sent = replace(update(1.0, 2.0, 3.0, 4.0), client_id=client_id)
        metrics = on_client({**before, name: Drawing()}, sent, {}, broadcast, LAYOUT, 0).metrics
        return metrics[f"transforms/{name}/drawn"]

    first = drawn("a", 3, SENT)
    assert drawn("a", 3, SENT, clip=ClipNorm(max_norm=1.0), other=Drawing()) == first
    others = [drawn("b", 3, SENT), drawn("a", 4, SENT), drawn("a", 3, replace(SENT, round=5))]
    others.append(on_server({"a": Drawing()}, {}, {}, SENT, LAYOUT, 0)[2]["transforms/a/server"])
    assert len({first, *others}) == 5


def test_what_is_no_mapping_of_transforms_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^strategy\.transforms: must be a mapping of names to transforms"):
        FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=[Scaled()])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^strategy\.transforms\.a: int is no flrl\.transforms\.Transform$"):
        averaging(a=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the name 'a/b' must not be empty or have a slash$"):
        averaging(**{"a/b": Scaled()})
