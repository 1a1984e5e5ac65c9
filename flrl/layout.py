"""A module as one flat vector: all trainable parameters, then all persistent floating-point buffers.

Integer buffers (BatchNorm's `num_batches_tracked`), non-persistent buffers and frozen parameters are not part of the
vector: they are neither sent nor averaged. `BoundModel` makes a module's own tensors views into its vector, so that
loading the global model is one copy and reading the trained one is none.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import reduce
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from flrl.kernels import Survey, survey
from flrl.snapshot import Shared, Snapshot

Kind = Literal["trainable", "buffer"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One named tensor's place in the vector: `vector[start:start + size].view(shape)`."""

    name: str
    kind: Kind
    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def slice(self) -> slice:
        """The entry's elements in the vector."""
        return slice(self.start, self.start + self.size)


def _averaged_tensors(module: nn.Module) -> Iterator[tuple[str, Kind, Tensor]]:
    """The tensors of the vector, in its order; a tensor that is tied under several names comes once."""
    persistent = module.state_dict(keep_vars=True).keys()
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"parameter {name!r} is not initialized: run one batch through a lazy module first")
        if parameter.requires_grad:
            yield name, "trainable", parameter
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and name in persistent:
            yield name, "buffer", buffer


class ParameterLayout:
    """Each name's slice, shape and kind in the flat vector of a module.

    The vector's dtype is the widest among its entries; an entry of another dtype is converted on the way in and out.

    Attributes:
        entries: in the vector's order.
        dtype: of the vector.
        size: elements of the vector.
        num_trainable: elements of its trainable part, which comes first.
        nbytes: bytes of all entries in their own dtypes: what sending the model once costs.
    """

    def __init__(self, module: nn.Module) -> None:
        entries: list[Entry] = []
        start = 0
        dtypes: list[torch.dtype] = []
        self.nbytes = 0
        for name, kind, tensor in _averaged_tensors(module):
            if tensor.is_complex():
                raise ValueError(f"{kind} {name!r} has dtype {tensor.dtype}; real floating-point dtypes are supported")
            dtype = str(tensor.dtype).removeprefix("torch.")
            entries.append(Entry(name, kind, start, tuple(tensor.shape), dtype))
            start += tensor.numel()
            dtypes.append(tensor.dtype)
            self.nbytes += tensor.numel() * tensor.element_size()
        self.entries = tuple(entries)
        self.size = start
        self.num_trainable = sum(entry.size for entry in entries if entry.kind == "trainable")
        self.dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all names, kinds, shapes and dtypes: two models with the same one can exchange vectors."""
        return hashlib.sha256(json.dumps([asdict(entry) for entry in self.entries]).encode()).hexdigest()

    def flatten(self, module: nn.Module) -> Tensor:
        """Copy a module's tensors into a new vector, shape `[size]`."""
        tensors = [tensor.detach().reshape(-1).to(self.dtype) for _, _, tensor in _averaged_tensors(module)]
        vector = torch.cat(tensors) if tensors else torch.empty(0, dtype=self.dtype)
        self.check(vector)
        return vector

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Name the parts of a vector: views of it, converted where an entry's own dtype is another."""
        self.check(vector)
        return {e.name: vector[e.slice].view(e.shape).to(getattr(torch, e.dtype)) for e in self.entries}

    def check(self, vector: Tensor) -> None:
        """Raise ValueError unless the vector has this layout's shape."""
        if vector.shape != (self.size,):
            raise ValueError(f"vector has shape {tuple(vector.shape)}, the model needs ({self.size},)")


class BoundModel:
    """A module whose averaged tensors are views into one vector.

    Args:
        module: the module to bind; its tensors keep their values.

    Attributes:
        module: the module itself.
        layout: its layout.
        vector: the live vector: training the module changes it.
        touched: code of the module may have run since it was last put back. Whoever has kept it from running says so by
            setting this to False, which spares the next client the search for changes.

    Raises:
        ValueError: the module holds something whose state can neither be read nor set.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout = ParameterLayout(module)
        device = next((tensor.device for _, _, tensor in _averaged_tensors(module)), torch.device("cpu"))
        self.vector = self.layout.flatten(module).to(device)
        self._tensors = [tensor for _, _, tensor in _averaged_tensors(module)]
        self._places = [_place(module, entry.name) for entry in self.layout.entries]
        averaged = {id(tensor) for tensor in self._tensors}
        self._local = [(buffer, buffer.clone()) for buffer in module.buffers() if id(buffer) not in averaged]
        self._frozen = [(name, p, _bits(p)) for name, p in module.named_parameters() if not p.requires_grad]
        registers: list[dict[str, Any]] = [part._parameters for part in module.modules()]
        registers += [part._modules for part in module.modules()]
        self._registers = [(register, list(register.items())) for register in registers]
        views = [self.vector[entry.slice].view(entry.shape) for entry in self.layout.entries]
        self._views = list(zip(self._tensors, views, strict=True))
        self._bind()
        self.touched = True
        self._outside = Snapshot(module, "module", spared=[*module.parameters(), *module.buffers()])
        self._shared = Shared(module)
        if stuck := self._outside.stuck:
            raise ValueError(
                f"model: {type(module).__name__} holds what cannot be put back between clients: {', '.join(stuck)}; "
                "hold numbers, tensors, lists or generators with a seed instead"
            )

    def _bind(self) -> None:
        for tensor, view in self._views:
            if tensor.dtype == view.dtype:
                tensor.data = view
            else:
                tensor.data.copy_(view)

    def load(self, vector: Tensor, *, channels_last: bool = False) -> None:
        """Set the model to a vector, and everything outside of it to what it was when the module was bound.

        Gradients are dropped. After this, nothing of an earlier client is left in the module, in its attributes, or in
        what they hold.

        Args:
            vector: shape `[layout.size]`.
            channels_last: store parameters of four dimensions that way; they are no views of `self.vector` then.
        """
        self.layout.check(vector)
        self.put_back()
        self.vector.copy_(vector)
        self._bind()
        for parameter in self.trainable():
            parameter.requires_grad_(True)
        for tensor in self._tensors:
            tensor.grad = None
            if channels_last and tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)

    def put_back(self) -> None:
        """Make everything outside of the vector what it was when the module was bound."""
        if self.touched:
            self._outside.restore()
        self.touched = True
        for buffer, initial in self._local:
            buffer.copy_(initial)

    def changed(self) -> list[str]:
        """What outside of parameters and buffers is not what it was when the module was bound."""
        return self._outside.changed()

    def read(self) -> Tensor:
        """The model as it is now: `vector` itself, brought up to date where a tensor is no view of it.

        A buffer that was replaced by another tensor is read from there.

        Raises:
            ValueError: a parameter that was frozen when the module was bound has been trained or changed since, or
                parameters or submodules have been added, replaced or removed.
        """
        if self.touched:
            self._check_parts()
        for (tensor, view), (register, name) in zip(self._views, self._places, strict=True):
            present = register[name]
            if present is not tensor:
                if present is None or present.shape != tensor.shape:
                    found = "nothing" if present is None else f"shape {tuple(present.shape)}"
                    raise ValueError(f"buffer {name!r} was replaced by {found}, it had shape {tuple(tensor.shape)}")
                view.copy_(present.detach())
            elif tensor.data_ptr() != view.data_ptr() or tensor.dtype != view.dtype:
                view.copy_(tensor.detach())
        return self.vector

    def _check_parts(self) -> None:
        if changed := self._shared.changed():
            raise ValueError(
                f"model: {type(self.module).__name__} changes {', '.join(changed[:3])} while a client trains, which "
                "all modules share and nobody can put back: make it an attribute of the module"
            )
        for name, parameter, bits in self._frozen:
            if parameter.requires_grad or _bits(parameter) != bits:
                raise ValueError(
                    f"parameter {name!r} was frozen at the start and has been changed: it would not be sent; "
                    "what is averaged without being trained is a buffer"
                )
        for register, before in self._registers:
            if len(register) != len(before) or any(register.get(name) is not part for name, part in before):
                kept = dict(before)
                names = [name for name in {**kept, **register} if register.get(name) is not kept.get(name)]
                raise ValueError(
                    f"{', '.join(map(repr, names))}: parameters and submodules that are made or replaced while a "
                    "client trains would not be sent; make them in __init__ or configure_model"
                )

    def trainable(self) -> list[nn.Parameter]:
        """The trainable parameters, in the vector's order."""
        return [tensor for tensor in self._tensors if isinstance(tensor, nn.Parameter)]

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector under the module's own `state_dict` names, as independent copies."""
        self.load(vector)
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}


def _place(module: nn.Module, full: str) -> tuple[dict[str, Any], str]:
    """The register that a tensor of this name is in, and its name there."""
    path, _, name = full.rpartition(".")
    part = module.get_submodule(path)
    return (part._parameters if name in part._parameters else part._buffers), name


def _bits(tensor: Tensor) -> int:
    """The sum of a tensor's bits: writing through `.data` leaves no other trace."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    size = tensor.element_size() if tensor.element_size() in (1, 2, 4, 8) else 1
    return int(data.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]).sum(dtype=torch.int64))


def digest(vector: Tensor) -> str:
    """SHA-256 of a vector's bytes, as 64 hexadecimal digits."""
    data = vector.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def checksum(vectors: Iterable[Tensor]) -> str:
    """A quick fingerprint of vectors to find differences by: the sum of their float64 bits modulo 2^64."""
    return checksum_of(survey(vector) for vector in vectors)


def checksum_of(surveys: Iterable[Survey]) -> str:
    """Likewise, for vectors that have been surveyed."""
    return f"{sum(survey.bits for survey in surveys) % 2**64:016x}"
