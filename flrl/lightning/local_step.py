"""The training step as a strategy's `adjust_loss` sees it: the batch, values, and outputs of the module's layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flrl.layout import ParameterLayout
from flrl.lightning.steps import replaced, step_caller
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
        buffers: buffers by name, where they differ from the module's own.
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
        buffers: Tensors | None = None,
        training_step: Callable[..., Any] | None = None,
    ) -> None:
        self.batch, self.values, self.outputs = batch, values, outputs
        self._module, self._layout, self._buffers = module, layout, buffers
        self._training_step = module.training_step if training_step is None else training_step

    def outputs_with(self, vector: Tensor) -> dict[str, Tensor]:
        """The outputs of the observed layers on this batch for another model, without gradients, by layer name.

        Args:
            vector: the model, shape `[layout.local_size]` or `[layout.size]`; usually one of `values`.
        """
        own_buffers = dict(self._module.named_buffers()) if self._buffers is None else self._buffers
        tensors = {**own_buffers, **self._layout.unflatten(vector)}
        # Copies of the buffers, which the step may change: they are a part of the module or of the vector.
        given = {f"module.{n}": tensor.clone() if n in own_buffers else tensor for n, tensor in tensors.items()}
        own = {"log": _nothing, "log_dict": _nothing, "training_step": self._training_step}
        with torch.no_grad(), replaced(self._module, **own):
            with observed(self._module, list(self.outputs)) as outputs:
                functional_call(StepModule(self._module), given, (self.batch,))
        return {name: output.detach() for name, output in outputs.items()}


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
