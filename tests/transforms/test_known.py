"""What a transform says it knows of a vector saves time, and changes nothing."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flrl.aggregation.base import known_of, stats_of
from flrl.backends import SerialBackend
from flrl.kernels import compiling, vector_stats
from flrl.transforms import Context, TopK, Transform
from flrl.transforms.apply import on_client
from flrl.transforms.compression.base import Compressor
from flrl.transforms.compression.sparse import sample
from flrl.types import Broadcast, ClientUpdate, Known
from tests.transforms.composition import TRANSFORMS, refusal, transform
from tests.transforms.given import LAYOUT, context, update
from tests.transforms.together import Together, run

REPEATABLE = [name for name in TRANSFORMS if refusal((name,)) is None and transform(name).repeatable]
SENT = Broadcast(round=1, vector=torch.zeros(4), total_weight=7.0, cohort=(3,))


def noted(name: str) -> list[list[str]]:
    return run(Together("mean", name, "rule") if name == "mean" else Together(name, "mean", "rule"), SerialBackend())


@pytest.mark.parametrize("name", ["dp", "dp_adaptive", "dp_local", "top_k"])
def test_runs_are_the_same_without_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_LITTLE_WORK", -1)
    used = []

    def told(update: ClientUpdate, name: str) -> Known:
        found = known_of(update, name)
        used.append(found.stats is not None or found.places is not None)
        return found

    if name != "top_k":
        monkeypatch.setattr(transform(name), "clip", 0.01)  # so that there is something to clip
    for module in ("base", "mean"):
        monkeypatch.setattr(f"flrl.aggregation.{module}.known_of", told)
    found = noted(name)
    assert any(used) == (name != "dp_local")  # whose noise comes after what it knows
    for module in ("base", "mean"):
        monkeypatch.setattr(f"flrl.aggregation.{module}.known_of", lambda update, name: Known(update.vectors[name]))
    assert noted(name) == found


def test_it_is_known_of_that_vector_alone() -> None:
    vector = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    known = Known(vector, places=torch.tensor([1]))
    sent = replace(update(0.0), vectors={"update": vector}, known={"update": known})
    assert known_of(sent, "update") is known
    other = replace(sent, vectors={"update": vector.clone()})
    assert known_of(other, "update").places is None
    assert on_client({}, sent, {}, SENT, LAYOUT, 0).known == {}  # a strategy's word is not taken for it


class Noisy(TopK):
    """Adds one to all numbers of what top-k sends."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        update, memory, numbers = super().client(update, memory, context)
        return replace(update, vectors={"update": update.vectors["update"] + 1}), memory, numbers


class Writing(TopK):
    """Writes into what top-k sends, past torch."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        update, memory, numbers = super().client(update, memory, context)
        update.vectors["update"].numpy()[:] = 3.0
        return update, memory, numbers


class WritingInto(Transform):
    """Writes into the vector that it is given, past torch."""

    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        update.vectors["update"].numpy()[:] = 3.0
        return update, memory, {}


@pytest.mark.parametrize(
    "transforms",
    [{"noisy": Noisy(share=0.25)}, {"own": Writing(share=0.25)}, {"top_k": TopK(share=0.25), "own": WritingInto()}],
)
def test_what_changes_a_vector_is_looked_at(transforms: dict[str, Transform]) -> None:
    sent = on_client(transforms, update(1.0, -4.0, 3.0, 0.5), {}, SENT, LAYOUT, 0)
    assert stats_of(sent)["update"] == vector_stats(sent.vectors["update"])
    assert known_of(sent, "update").places is None


@pytest.mark.parametrize("name", REPEATABLE)
def test_nothing_of_flrl_draws_from_the_global_generators(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they need not be seeded for it."""

    def states() -> tuple[Any, ...]:
        numpys: Any = np.random.get_state()
        return torch.get_rng_state().tolist(), numpys[1].tolist(), numpys[2:], random.getstate()

    def watched(*given: Any, **named: Any) -> ClientUpdate:
        before = states()
        found = on_client(*given, **named)
        assert states() == before
        calls.append(name)
        return found

    calls: list[str] = []
    monkeypatch.setattr("flrl.worker.on_client", watched)
    noted(name)
    assert len(calls) >= 8


@pytest.mark.parametrize("way", [-1, 2**62], ids=["compiled", "numpy"])
@pytest.mark.parametrize("size", [5, 399, 4001])
def test_the_error_is_added_in_one_pass_to_the_same_bits(size: int, way: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_LITTLE_WORK", way)
    layout = replace_size(size)
    rng, top_k = np.random.default_rng(size), TopK(share=0.05)
    memories: list[dict[str, torch.Tensor]] = [{}, {}]
    for turn in range(4):
        vector = torch.from_numpy(rng.normal(size=size) ** 3)
        vector[::7] = -0.0
        vector[1] = vector[2] = 1.0
        if turn == 2:
            sample(vector.numpy())[:] *= 1000.0  # what is looked at first is not like the others
        found = [
            top_k.with_error(vector, memories[0], context(layout=layout)),
            Compressor.with_error(top_k, vector, memories[1], context(layout=layout)),
        ]
        one, two = found
        assert one is not None
        assert two is not None
        assert one.buffer.tobytes() == two.buffer.tobytes()
        assert one.memory["error"].numpy().tobytes() == two.memory["error"].numpy().tobytes()
        for each in (one, two):
            assert each.decoded is not None
            assert each.places is not None
            assert each.decoded.tobytes() == top_k.decode(each.buffer, layout).tobytes()
            assert np.isin(np.flatnonzero(each.decoded), each.places).all()
        memories = [dict(one.memory), dict(two.memory)]
    for wrong in (float("nan"), float("inf")):
        vector[3] = wrong
        assert top_k.with_error(vector, memories[0], context(layout=layout)) is None


def replace_size(size: int) -> Any:
    """The layout of a model of so many numbers."""
    return type(LAYOUT)(torch.nn.Linear(size, 1, bias=False))
