"""Everything that an object holds can be put back, in place; what cannot is named."""

import array
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from flrl.snapshot import Shared, Snapshot


class Slotted:
    __slots__ = ("later", "value")

    def __init__(self) -> None:
        self.value = [1]


@dataclass(frozen=True, slots=True)
class Fixed:
    parts: list[int]


class Shaped:
    level: ClassVar[int] = 1
    seen: ClassVar[list[int]] = []


def plain(thing: Any) -> Any:
    """What a thing holds, as something that can be compared."""
    if isinstance(thing, torch.Tensor):
        return thing.dtype, tuple(thing.shape), repr(thing.detach().tolist()), thing.requires_grad, thing.grad
    if isinstance(thing, torch.Generator):
        return thing.get_state().tolist()
    if isinstance(thing, np.random.Generator):
        return repr(thing.bit_generator.state)
    if isinstance(thing, np.random.RandomState):
        return repr(thing.get_state())
    if isinstance(thing, random.Random):
        return thing.getstate()
    if isinstance(thing, np.ndarray):
        return thing.tolist()
    if isinstance(thing, Slotted):
        return thing.value, hasattr(thing, "later")
    if isinstance(thing, nn.Module | SimpleNamespace):
        return {name: plain(value) for name, value in vars(thing).items()}
    return repr(thing)


def assigned(thing: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(thing, name, value)


# What is held, what happens to it, and where that is seen.
CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], str]] = {
    "a number": (lambda: SimpleNamespace(n=1), lambda t: assigned(t, n=2), "it.n"),
    "an added attribute": (lambda: SimpleNamespace(), lambda t: assigned(t, n=2), "it.n"),
    "a removed attribute": (lambda: SimpleNamespace(n=1), lambda t: delattr(t, "n"), "it.n"),
    "a list": (lambda: [1, [2]], lambda t: t[1].append(3), "it[1]"),
    "an order": (lambda: [1, 2], lambda t: t.reverse(), "it"),
    "a dict": (lambda: {"a": {"b": 1}}, lambda t: t["a"].update(b=2), "it['a']['b']"),
    "a renamed key": (lambda: {"a": None}, lambda t: t.update(b=t.pop("a")), "it['a']"),
    "an ordered dict": (lambda: OrderedDict(a=1, b=2), lambda t: t.move_to_end("a"), "it"),
    "a counter": (lambda: Counter("aab"), lambda t: t.update("b"), "it['b']"),
    "a default": (lambda: defaultdict(list), lambda t: t["x"].append(1), "it['x']"),
    "a set": (lambda: {1, 2}, lambda t: t.discard(1), "it"),
    "a deque": (lambda: deque([1], maxlen=2), lambda t: t.append(3), "it"),
    "within a tuple": (lambda: ([],), lambda t: t[0].append(1), "it[0]"),
    "a tensor": (lambda: torch.zeros(2), lambda t: t.add_(1), "it"),
    "a tensor behind autograd": (lambda: torch.zeros(2), lambda t: t.data.add_(1), "it"),
    "a large tensor": (lambda: torch.zeros(20_000, 2), lambda t: t.data[7, 1].add_(1), "it"),
    "a zero's sign": (lambda: torch.zeros(2), lambda t: t.neg_(), "it"),
    "another shape": (lambda: torch.zeros(2), lambda t: assigned(t, data=torch.zeros(3)), "it"),
    "halves": (lambda: torch.zeros(2, dtype=torch.bfloat16), lambda t: t.add_(1), "it"),
    "complex numbers": (lambda: torch.zeros(2, dtype=torch.complex64), lambda t: t.add_(1j), "it"),
    "a gradient": (lambda: torch.zeros(2, requires_grad=True), lambda t: t.sum().backward(), "it"),
    "a wish for gradients": (lambda: torch.zeros(2), lambda t: t.requires_grad_(), "it"),
    "a hook": (
        lambda: torch.zeros(2, requires_grad=True),
        lambda t: t.register_hook(lambda gradient: gradient),
        "hooks of it",
    ),
    "torch's generator": (lambda: torch.Generator().manual_seed(1), lambda t: torch.rand(1, generator=t), "it"),
    "NumPy's generator": (lambda: np.random.default_rng(1), lambda t: t.random(), "it"),
    "another of NumPy's": (lambda: np.random.Generator(np.random.MT19937(1)), lambda t: t.random(), "it"),
    "NumPy's old generator": (lambda: np.random.RandomState(1), lambda t: t.rand(), "it"),
    "Python's generator": (lambda: random.Random(1), lambda t: t.random(), "it"),
    "an array": (lambda: np.zeros((2, 2)), lambda t: t.__setitem__((0, 1), 1), "it"),
    "an array of objects": (lambda: np.array([None, "a"], object), lambda t: t.__setitem__(0, 1), "it"),
    "bytes": (lambda: bytearray(b"ab"), lambda t: t.append(1), "it"),
    "numbers of Python": (lambda: array.array("d", [1, 2]), lambda t: t.append(3), "it"),
    "slots": (Slotted, lambda t: assigned(t, value=[2]), "it.value"),
    "a list in slots": (Slotted, lambda t: t.value.append(2), "it.value"),
    "a list in a frozen one": (lambda: Fixed([1]), lambda t: t.parts.append(2), "it.parts"),
    "a class": (Shaped, lambda t: assigned(Shaped, level=2), "Shaped.level"),
    "a class's list": (Shaped, lambda t: t.seen.append(2), "Shaped.seen"),
    "a module's mode": (lambda: nn.Linear(1, 1), lambda t: t.eval(), "it.training"),
    "a module's hook": (lambda: nn.Linear(1, 1), lambda t: t.register_forward_hook(print), "it._forward_hooks"),
}


@pytest.mark.parametrize(("make", "change", "place"), CASES.values(), ids=CASES.keys())
def test_what_has_changed_is_named_and_put_back(make: Any, change: Any, place: str) -> None:
    thing = make()
    snapshot = Snapshot(thing, "it")
    before = plain(thing), Shaped.level, list(Shaped.seen)
    assert (snapshot.changed(), snapshot.stuck) == ([], [])
    for _ in range(2):
        change(thing)
        assert any(name.startswith(place) for name in snapshot.changed())
        snapshot.restore()
        assert snapshot.changed() == []
        assert (plain(thing), Shaped.level, list(Shaped.seen)) == before


def test_objects_stay_the_same_objects() -> None:
    inner = [1]
    thing = {"a": inner, "b": inner}
    snapshot = Snapshot(thing, "it")
    thing["a"] = [2]
    inner.append(3)
    snapshot.restore()
    assert thing == {"a": [1], "b": [1]}
    assert thing["a"] is thing["b"] is inner


def test_things_that_hold_each_other_are_entered_once() -> None:
    thing: dict[str, Any] = {"n": 0}
    thing["self"] = thing
    snapshot = Snapshot(thing, "it")
    thing["n"] = 1
    assert snapshot.changed() == ["it['n']"]
    snapshot.restore()
    assert thing["n"] == 0


STUCK: dict[str, tuple[Any, str]] = {
    "an iterator": ({"next": iter([1])}, r"it['next'] (an iterator, list_iterator)"),
    "a generator": ([n for n in [(n for n in range(3))]], "it[0] (an iterator, generator)"),
    "the system's numbers": ([random.SystemRandom()], "it[0] (random numbers of the operating system)"),
    "a loader's iterator": (
        [iter(torch.utils.data.DataLoader([1, 2]))],  # type: ignore[arg-type]
        "it[0] (an iterator, _SingleProcessDataLoaderIter)",
    ),
}


@pytest.mark.parametrize(("thing", "reason"), STUCK.values(), ids=STUCK.keys())
def test_what_cannot_be_put_back_is_named(thing: Any, reason: str) -> None:
    assert Snapshot(thing, "it").stuck == [reason]


def test_a_file_that_is_read_cannot_be_put_back(tmp_path: Any) -> None:
    path = tmp_path / "file"
    with path.open("w") as written, path.open() as read:
        assert Snapshot([written, read], "it").stuck == ["it[1] (a file that is read)"]


def test_global_generators_are_somebody_elses() -> None:
    thing = [torch.default_generator, np.random.mtrand._rand, random._inst]  # type: ignore[attr-defined]
    snapshot = Snapshot(thing, "it")
    torch.rand(1), np.random.rand(), random.random()
    assert snapshot.changed() == []


def test_what_is_spared_or_left_stays() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    snapshot = Snapshot(module, "it", spared=module.parameters(), left=(nn.Dropout,))
    with torch.no_grad():
        module[0].weight.add_(1)
    module[1].p = 0.9
    assert snapshot.changed() == []


_COUNT = 0
_LIST: list[int] = []


def _counted() -> None:
    global _COUNT
    _COUNT += 1


class Sharing(nn.Module):
    def count(self) -> None:
        _counted()

    def collect(self) -> None:
        _LIST.append(1)


@pytest.mark.parametrize(("method", "name"), [("count", "_COUNT"), ("collect", "_LIST")])
def test_changes_of_globals_are_seen(method: str, name: str) -> None:
    module = Sharing()
    shared = Shared(module)
    assert shared.changed() == []
    getattr(module, method)()
    assert shared.changed() == [name]


def test_changes_of_enclosing_variables_are_seen() -> None:
    count = 0

    class Enclosed(nn.Module):
        def forward(self) -> None:
            nonlocal count
            count += 1

    module = Enclosed()
    shared = Shared(module)
    assert shared.changed() == []
    module()
    assert shared.changed() == ["count (of an enclosing function)"]
