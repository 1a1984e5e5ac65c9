"""The training step as a strategy's `adjust_loss` sees it: the batch, values, and outputs of the module's layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flrl.layout import ParameterLayout
from flrl.lightning.steps import loss_of, replaced, step_caller
from flrl.types import Tensors


class LocalStep:
    """One training step of one client.

    Use only tensor operations on its attributes and results: engines record them once and replay them.

    Args:
        module: the user's module.
        layout: the layout of its parameters.
        batch: the argument of `training_step`.
        values: `LocalProblem.values`.
        outputs: outputs of the observed layers in this step, by layer name.
        parameters: trainable parameters by name, where they differ from the module's own.
        buffers: buffers by name, likewise.
        training_step: the module's original `training_step`, where it is replaced.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        layout: ParameterLayout,
        batch: Any,
        values: Tensors,
        outputs: Tensors,
        *,
        parameters: Tensors | None = None,
        buffers: Tensors | None = None,
        training_step: Callable[..., Any] | None = None,
    ) -> None:
        self.batch, self.values, self.outputs = batch, values, outputs
        self._module, self._layout = module, layout
        self._parameters, self._buffers = parameters, buffers
        self._training_step = module.training_step if training_step is None else training_step

    @property
    def parameters(self) -> Tensors:
        """The trainable parameters in this step by name, with gradients."""
        if self._parameters is not None:
            return self._parameters
        own = dict(self._module.named_parameters())
        return {entry.name: own[entry.name] for entry in self._layout.trained}

    def outputs_with(self, vector: Tensor) -> dict[str, Tensor]:
        """The outputs of the observed layers on this batch for another model, without gradients, by layer name.

        Args:
            vector: the model, shape `[layout.local_size]` or `[layout.size]`; usually one of `values`.
        """
        with torch.no_grad(), observed(self._module, list(self.outputs)) as outputs:
            self._call(self._layout.unflatten(vector))
        return {name: output.detach() for name, output in outputs.items()}

    def loss_with(self, parameters: Tensors) -> Tensor:
        """The module's loss on this batch had it other trainable parameters, a scalar; gradients flow to them.

        Random numbers, as for dropout, are drawn anew.

        Args:
            parameters: the parameters by name; buffers are those of this step.

        Raises:
            ValueError: `training_step` skipped the batch.
        """
        loss = loss_of(self._call(parameters))
        if loss is None:
            raise ValueError("the strategy needs a loss for every batch, training_step returned None")
        return loss

    def gradients_with(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """The gradients of the module's loss on this batch, by the names of the trainable parameters.

        They cost a forward and a backward pass, and are constants for `adjust_loss`.

        Args:
            vector: the trainable parameters are those of this model, `[layout.local_size]`; None: those of this step.
        """
        given = self.parameters if vector is None else self._layout.unflatten(vector)
        at = {entry.name: given[entry.name].detach() for entry in self._layout.trained}
        found: dict[str, Tensor] = torch.func.grad(self.loss_with)(at)
        return {name: gradient.detach() for name, gradient in found.items()}

    def _call(self, tensors: Tensors) -> Any:
        """What the training step returns with other tensors, by name, in the module."""
        own_buffers = dict(self._module.named_buffers()) if self._buffers is None else self._buffers
        # Copies of the buffers, which the step may change: they are a part of the module or of the vector.
        given = {
            f"module.{n}": tensor.clone() if n in own_buffers else tensor
            for n, tensor in {**own_buffers, **tensors}.items()
        }
        own = {"log": _nothing, "log_dict": _nothing, "training_step": self._training_step}
        with replaced(self._module, **own):
            return functional_call(StepModule(self._module), given, (self.batch,))


class StepModule(nn.Module):
    """A module whose `forward` is the training step, as `functional_call` needs it."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any, batch_idx: int = 0) -> Any:
        """What `training_step` returns."""
        return step_caller(self.module.training_step)(batch, batch_idx)


@contextmanager
def observed(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers by name while the module is called.

    Raises:
        ValueError: the module has no such layer.
    """
    outputs: dict[str, Tensor] = {}
    handles = [layer_of(module, name).register_forward_hook(_noting(outputs, name)) for name in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def layer_of(module: nn.Module, name: str) -> nn.Module:
    """A submodule by its name.

    Raises:
        ValueError: the module has no such layer.
    """
    layers: Mapping[str, nn.Module] = dict(module.named_modules())
    if name not in layers:
        known = ", ".join(name for name in layers if name)
        raise ValueError(f"the model has no layer {name!r}; it has {known}")
    return layers[name]


def _noting(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(layer: nn.Module, arguments: Any, output: Tensor) -> None:
        outputs[name] = output

    return hook


def _nothing(*args: Any, **options: Any) -> None:
    pass
