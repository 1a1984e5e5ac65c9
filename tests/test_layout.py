import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flrl.bound_model import BoundModel
from flrl.layout import ParameterLayout, digest


class Mixed(nn.Module):
    """Tied weights, buffers of all kinds, frozen parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.full((2,), 5.0), requires_grad=False)
        self.register_buffer("scratch", torch.ones(4), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))


def test_order_kinds_and_places() -> None:
    layout = ParameterLayout(Mixed())
    found = [(e.name, e.kind, e.start, e.shape) for e in layout.entries]
    assert found == [
        ("first.weight", "trainable", 0, (3, 3)),
        ("norm.weight", "trainable", 9, (3,)),
        ("norm.bias", "trainable", 12, (3,)),
        ("mask", "buffer", 15, (2,)),
        ("norm.running_mean", "buffer", 17, (3,)),
        ("norm.running_var", "buffer", 20, (3,)),
    ]
    assert (layout.size, layout.num_trainable, layout.nbytes) == (23, 15, 92)


def test_an_empty_module_is_an_empty_vector() -> None:
    model = BoundModel(nn.Module())
    assert (model.layout.size, model.layout.nbytes, model.vector.shape) == (0, 0, (0,))
    model.load(torch.empty(0))
    assert digest(model.vector) == hashlib.sha256(b"").hexdigest()


def test_bound_tensors_are_views_and_tied_weights_stay_tied() -> None:
    module = Mixed()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = BoundModel(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    model.vector.fill_(2.0)
    assert module.second.weight is module.first.weight
    assert module.second.weight.sum() == 18
    assert module.norm.running_var.tolist() == [2.0, 2.0, 2.0]
    assert module.frozen.tolist() == [5.0, 5.0]
    with torch.no_grad():
        module.first.weight.zero_()
    assert model.read()[:9].tolist() == [0.0] * 9
    assert model.read() is model.vector


def test_loading_restores_what_is_not_in_the_vector() -> None:
    module = Mixed()
    model = BoundModel(module)
    start = model.vector.clone()
    module.norm.num_batches_tracked.fill_(7)
    module.scratch.zero_()
    module.first.weight.grad = torch.ones(3, 3)
    model.load(start)
    assert module.norm.num_batches_tracked == 0
    assert module.scratch.tolist() == [1.0] * 4
    assert module.first.weight.grad is None


def test_tensors_that_were_replaced_are_read_and_rebound() -> None:
    model = BoundModel(nn.Linear(2, 1))
    model.module.weight.data = torch.tensor([[3.0, 4.0]])
    assert model.read()[:2].tolist() == [3.0, 4.0]
    model.load(torch.tensor([1.0, 2.0, 0.0]))
    model.vector.add_(1)
    assert model.module.weight.tolist() == [[2.0, 3.0]]


def test_several_dtypes_meet_in_the_widest() -> None:
    module = nn.Sequential(nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 1).to(torch.float64))
    model = BoundModel(module)
    assert model.layout.dtype == torch.float64
    assert model.layout.nbytes == 6 * 2 + 3 * 8  # by chance 4 bytes for each of the nine
    assert ParameterLayout(nn.Linear(2, 1).double()).nbytes == 3 * 8
    model.load(torch.arange(9, dtype=torch.float64) / 3)
    assert module[0].weight.dtype == torch.bfloat16
    assert module[0].weight[0, 1] == torch.tensor(1 / 3, dtype=torch.bfloat16)
    with torch.no_grad():
        module[0].bias.fill_(0.5)
    assert model.read()[4:6].tolist() == [0.5, 0.5]
    parts = model.layout.unflatten(model.vector)
    assert {name: part.dtype for name, part in parts.items()} == {
        "0.weight": torch.bfloat16, "0.bias": torch.bfloat16, "1.weight": torch.float64, "1.bias": torch.float64
    }  # fmt: skip


shapes = st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5)


@given(shapes, shapes, st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_flatten_and_unflatten_undo_each_other(trainable: list, frozen: list, seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.Module()
    for index, shape in enumerate(trainable):
        module.register_parameter(f"p{index}", nn.Parameter(torch.randn(shape)))
        module.register_buffer(f"b{index}", torch.randn(shape))
    for index, shape in enumerate(frozen):
        module.register_parameter(f"f{index}", nn.Parameter(torch.randn(shape), requires_grad=False))
    layout = ParameterLayout(module)
    vector = layout.flatten(module)
    parts = layout.unflatten(vector)
    assert set(parts) == {f"{kind}{index}" for index in range(len(trainable)) for kind in "pb"}
    assert all(torch.equal(part, getattr(module, name)) for name, part in parts.items())
    bound = BoundModel(module)
    assert torch.equal(bound.vector, vector)
    other = torch.randn_like(vector)
    bound.load(other)
    assert torch.equal(layout.flatten(module), other)


def test_state_dict_has_the_modules_names_and_is_a_copy() -> None:
    model = BoundModel(Mixed())
    state = model.state_dict(torch.arange(23.0))
    assert list(state) == list(Mixed().state_dict())
    assert torch.equal(state["second.weight"], torch.arange(9.0).view(3, 3))
    state["first.weight"].zero_()
    assert model.vector[8] == 8


def test_models_have_different_fingerprints() -> None:
    prints = {ParameterLayout(m).fingerprint for m in (nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3).double())}
    assert len(prints) == 3
    assert ParameterLayout(nn.Linear(2, 3)).fingerprint == ParameterLayout(nn.Linear(2, 3)).fingerprint


def test_what_cannot_be_flattened_is_named() -> None:
    with pytest.raises(ValueError, match="'weight' is not initialized"):
        ParameterLayout(nn.LazyLinear(3))
    module = nn.Module()
    module.z = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"'z' has dtype torch\.complex64"):
        ParameterLayout(module)
    with pytest.raises(ValueError, match=r"shape \(4,\), the model needs \(3,\)"):
        BoundModel(nn.Linear(2, 1)).load(torch.zeros(4))


def test_digest_is_the_sha256_of_the_bytes() -> None:
    vector = torch.tensor([1.0, -2.0])
    assert digest(vector) == hashlib.sha256(bytes.fromhex("0000803f000000c0")).hexdigest()


def test_a_frozen_parameter_that_is_changed_is_named() -> None:
    """In place, without a gradient, as a moving average is kept; or by thawing it."""
    for change in (lambda frozen: frozen.add_(1), lambda frozen: frozen.requires_grad_(True)):
        module = Mixed()
        model = BoundModel(module)
        model.read()
        with torch.no_grad():
            change(module.frozen)
        with pytest.raises(ValueError, match=r"^parameter 'frozen' was frozen at the start and has been changed"):
            model.read()
