"""Own code that changes what clients share is seen, wherever it keeps that; what libraries and caches keep is not."""

import functools
import logging
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flrl.snapshot import Outside, Snapshot, own_parts

SOURCE = """
import functools, random, types, weakref
import numpy as np, torch
from collections import Counter, UserDict, deque
from torch import nn
from torch.utils.data import Dataset

number, items, counts, members, order = 0, [], Counter(), {1}, deque([1, 2])
large, tensor, array = torch.arange(100_000), torch.zeros(3), np.zeros(3)
system, user = random.SystemRandom(), UserDict()
generator, numpy, python = torch.Generator(), np.random.default_rng(0), random.Random(0)
space, layer, unknown = types.SimpleNamespace(n=0), nn.Linear(2, 2), weakref.WeakValueDictionary()
iterator, rows = iter(range(9)), (i for i in range(9))

class Slotted:
    __slots__ = ("value",)

class Helper:
    n = 0
    def __init__(self, value=0): self.value = value
    @functools.cached_property
    def kept(self): return [1]

class Images(Dataset):
    def __init__(self): self.read = {}

helper, deep, slotted, images = Helper(), {"a": [Helper()]}, Slotted(), Images()
slotted.value = 1

def plain(a=[], *, b={}): ...

@functools.cache
def kept(size): return [size]

@functools.lru_cache(maxsize=2)
def limited(size): return [size]

@torch.no_grad()
def decorated(a=[]): ...

def wrapping(function):
    calls = []
    total = 0
    @functools.wraps(function)
    def count(*arguments):
        nonlocal total
        calls.append(1)
        total += 1
        return function(*arguments)
    return count

@wrapping
def wrapped(): ...

late = functools.partial(plain, [5])

class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = Helper()
        self.note = wrapping(print)
"""


@pytest.fixture
def own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "shared_by_all.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    import shared_by_all  # type: ignore[import-not-found]

    yield shared_by_all
    del sys.modules["shared_by_all"]


def outside_of(own: Any) -> Outside:
    module = own.Module()
    own.module = module
    own.kept(3), own.limited(3)
    before = Snapshot(module, "module", spared=module.parameters())
    return Outside(own_parts(before.objects), [before])


def assigned(thing: Any, **values: Any) -> None:
    for name, value in values.items():
        setattr(thing, name, value)


SEEN: dict[str, Callable[[Any], Any]] = {
    "number": lambda own: assigned(own, number=1),
    "later": lambda own: assigned(own, later=1),
    "items": lambda own: own.items.append(1),
    "counts['a']": lambda own: own.counts.update("a"),
    "members": lambda own: own.members.add(2),
    "order": lambda own: own.order.rotate(1),
    "large": lambda own: own.large[:2].copy_(own.large[:2].flip(0)),
    "user.data['a']": lambda own: own.user.update(a=1),
    "tensor": lambda own: own.tensor.data.add_(1),
    "array": lambda own: own.array.__setitem__(0, 1),
    "generator": lambda own: torch.rand(1, generator=own.generator),
    "numpy": lambda own: own.numpy.random(),
    "python": lambda own: own.python.random(),
    "space.n": lambda own: assigned(own.space, n=1),
    "layer.weight": lambda own: nn.init.zeros_(own.layer.weight),
    "iterator": lambda own: next(own.iterator),
    "rows": lambda own: next(own.rows),
    "helper.value": lambda own: assigned(own.helper, value=1),
    "helper.other": lambda own: assigned(own.helper, other=1),
    "deep['a'][0].value": lambda own: assigned(own.deep["a"][0], value=1),
    "slotted.value": lambda own: assigned(own.slotted, value=2),
    "Images.n": lambda own: assigned(own.Images, n=1),
    "plain.n": lambda own: assigned(own.plain, n=1),
    "plain's a": lambda own: own.plain.__defaults__[0].append(1),
    "plain's b['x']": lambda own: own.plain.__kwdefaults__["b"].update(x=1),
    "plain.__defaults__": lambda own: assigned(own.plain, __defaults__=([1],)),
    "decorated's a": lambda own: own.decorated.__wrapped__.__defaults__[0].append(1),
    "a kept result of shared_by_all.kept": lambda own: own.kept(3).append(1),
    "a kept result of shared_by_all.limited": lambda own: own.limited(3).append(1),
    "calls (enclosed by shared_by_all.wrapped)": lambda own: own.wrapped(),
    "calls (enclosed by builtins.print)": lambda own: own.module.note(),
    "late": lambda own: own.late.args[0].append(1),
}


@pytest.mark.parametrize("place", SEEN)
def test_what_clients_share_is_seen(own: Any, place: str) -> None:
    outside = outside_of(own)
    assert outside.changed() == []
    SEEN[place](own)
    expected = place if "shared_by_all" in place or "print" in place else f"shared_by_all.{place}"
    assert expected in outside.changed()
    with pytest.raises(ValueError, match=r"own code changes .* while it is tried, which all clients"):
        outside.refuse("while it is tried")
    outside.refresh()
    assert outside.changed() == []


def warned(own: Any) -> None:
    exec(compile("import warnings; warnings.warn('here', stacklevel=1)", own.__file__, "exec"), vars(own))


HARMLESS: dict[str, Callable[[Any], Any]] = {
    "kept results": lambda own: (own.kept(4), own.limited(5), own.limited(6)),
    "cached_property": lambda own: own.helper.kept,
    "global generators": lambda own: (random.random(), np.random.rand(), torch.rand(1)),
    "the operating system's random numbers": lambda own: own.system.random(),
    "a log line": lambda own: logging.getLogger("shared_by_all").warning("here"),
    "what the module holds": lambda own: (assigned(own.module.own, value=5), own.module.register_buffer("b", None)),
    "a class that the module's parts are of": lambda own: assigned(own.Helper, n=5),
    "a dataset's memory": lambda own: own.images.read.update(a=1),
    "an object of a library": lambda own: own.unknown.update(a=own.helper),
    "a file that is imported": lambda own: assigned(own, json=types),
    "a method": lambda own: assigned(own.Images, read_all=lambda self: 1),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_put_back_or_always_the_same_is_left(own: Any, name: str) -> None:
    outside = outside_of(own)
    HARMLESS[name](own)
    assert outside.changed() == []


def test_a_warning_in_own_code_is_harmless(own: Any) -> None:
    outside = outside_of(own)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        warned(own)
    assert "__warningregistry__" in vars(own)
    assert outside.changed() == []


def test_results_that_are_kept_later_are_noted_with_the_next_look(own: Any) -> None:
    outside = outside_of(own)
    own.kept(7)
    assert outside.refresh()
    own.kept(7).append(1)
    assert outside.changed() == ["a kept result of shared_by_all.kept"]
    assert not outside.refresh()


def test_flrls_own_modules_cost_nothing() -> None:
    assert own_parts([nn.Linear(2, 2), functools.partial(print), [1]]) == []
    outside = Outside([])
    assert outside._cells == []
    assert not outside.refresh()
