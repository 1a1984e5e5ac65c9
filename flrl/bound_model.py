"""A module whose tensors are views of one flat vector: loading a model is one copy, reading the trained one none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flrl.layout import ParameterLayout, tensors_of
from flrl.snapshot import Shared, Snapshot, own_parts


class BoundModel:
    """A module whose trained and averaged tensors are views of one local vector.

    Args:
        module: the module to bind; its tensors keep their values.
        personal: patterns of the names of tensors that stay with their client, as for `ParameterLayout`.

    Attributes:
        module: the module itself.
        layout: its layout.
        local: the local vector, shape `[layout.local_size]`, which changes as the module is trained.
        vector: its part that is sent, shape `[layout.size]`.
        touched: whether code of the module may have run since `put_back`. An engine that has not run any sets this to
            False, so that the next `put_back` need not search for changes.
        outside: the state of everything outside of the vector when the module was bound, which is put back.
        own_parts: the user's own classes and functions that the module is made of.

    Raises:
        ValueError: the module holds an object whose state can neither be read nor set, or as for `ParameterLayout`.
    """

    def __init__(self, module: nn.Module, personal: Sequence[str] = ()) -> None:
        self.module = module
        self.layout = ParameterLayout(module, personal)
        self._tensors = [tensor for _, _, tensor in tensors_of(module, personal)]
        device = self._tensors[0].device if self._tensors else torch.device("cpu")
        self.local = self.layout.flatten_local(module).to(device)
        self.vector = self.local[: self.layout.size] if self.layout.personal else self.local
        self._initial = self.local[self.layout.size :].clone()
        entries = (*self.layout.entries, *self.layout.personal)
        self._places = [_place(module, entry.name) for entry in entries]
        averaged = {id(tensor) for tensor in self._tensors}
        self._local = [(buffer, buffer.clone()) for buffer in module.buffers() if id(buffer) not in averaged]
        self._frozen = [(name, p, _bits(p)) for name, p in module.named_parameters() if not p.requires_grad]
        registers: list[dict[str, Any]] = [part._parameters for part in module.modules()]
        registers += [part._modules for part in module.modules()]
        self._registers = [(register, list(register.items())) for register in registers]
        views = [self.local[entry.slice].view(entry.shape) for entry in entries]
        self._views = list(zip(self._tensors, views, strict=True))
        self._bind()
        self.touched = True
        self.outside = Snapshot(module, "module", spared=[*module.parameters(), *module.buffers()])
        self.own_parts = own_parts(self.outside.objects)
        self._shared = Shared(module)
        if stuck := self.outside.stuck:
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

    def local_vector(self, vector: Tensor, personal: Tensor | None = None) -> Tensor:
        """Join a vector and a client's personal part to a local vector, `[layout.local_size]`.

        Args:
            vector: shape `[layout.size]`.
            personal: shape `[layout.local_size - layout.size]`; the initial personal part by default.

        Raises:
            ValueError: the vector has another shape.
        """
        self.layout.check(vector)
        if not self.layout.personal:
            return vector
        own = self._initial if personal is None else personal
        return torch.cat([vector, own.to(vector.device)])

    def load(self, vector: Tensor, *, channels_last: bool = False) -> None:
        """Set the model to a vector, and restore everything else to its state when the module was bound.

        Gradients are dropped. No state of an earlier client is left in the module, in its attributes, or in objects
        that they hold.

        Args:
            vector: shape `[layout.local_size]`, or `[layout.size]` for the initial personal part.
            channels_last: store parameters of four dimensions in this format; they are no views of `self.local` then.

        Raises:
            ValueError: the vector has another shape, or a changed tensor is too large to be restored.
        """
        if vector.shape != self.local.shape:
            vector = self.local_vector(vector)
        self.put_back()
        self.local.copy_(vector)
        self._bind()
        for parameter in self.trainable():
            parameter.requires_grad_(True)
        for tensor in self._tensors:
            tensor.grad = None
            if channels_last and tensor.ndim == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)

    def put_back(self) -> None:
        """Restore everything outside of the vector to its state when the module was bound."""
        if self.touched:
            self.outside.restore()
        self.touched = True
        for buffer, initial in self._local:
            buffer.copy_(initial)

    def changed(self) -> list[str]:
        """The places outside of parameters and buffers that have changed since the module was bound."""
        return self.outside.changed()

    def read(self) -> Tensor:
        """The current model: `local` itself, updated from tensors that are no views of it.

        A buffer that was replaced by another tensor is copied from that.

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
        return self.local

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
        """The trainable parameters, in the order of the local vector: see `ParameterLayout.trained`."""
        return [tensor for tensor in self._tensors if isinstance(tensor, nn.Parameter)]

    def state_dict(self, vector: Tensor) -> dict[str, Tensor]:
        """The module's `state_dict` for a vector, as copies."""
        self.load(vector)
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}


def _place(module: nn.Module, full: str) -> tuple[dict[str, Any], str]:
    """The dict of parameters or buffers that holds a tensor of this name, and its key there."""
    path, _, name = full.rpartition(".")
    part = module.get_submodule(path)
    return (part._parameters if name in part._parameters else part._buffers), name


def _bits(tensor: Tensor) -> int:
    """The sum of a tensor's bits, to detect changes: writing through `.data` changes no version."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    size = tensor.element_size() if tensor.element_size() in (1, 2, 4, 8) else 1
    return int(data.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]).sum(dtype=torch.int64))
