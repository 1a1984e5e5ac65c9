"""Records a module's training step, gradients included, as a graph of tensor operations that can be replayed.

A replay runs the operations of `training_step` and `backward` without Python code of the module and without autograd,
with the same bits. That is correct if the step has the same operations for every batch of the same shapes; steps that
visibly depend on anything else are refused.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import pytorch_lightning as pl
import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torchmetrics import Metric

from flrl.bound_model import BoundModel
from flrl.layout import ParameterLayout
from flrl.lightning.local_step import LocalStep, StepModule, observed
from flrl.lightning.stand_in import attached
from flrl.lightning.steps import loss_of, replaced
from flrl.trainers.problem import ClientHooks
from flrl.trainers.steps.capturing import NotCapturableError, unchanged
from flrl.trainers.steps.graphs import changes, gives_arguments, own_gradients, readers, simplify
from flrl.types import Tensors


class Shape(NamedTuple):
    """Structure, shapes, dtypes and strides of a batch; a recorded step is valid for batches of equal `Shape`."""

    spec: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, batch: Any) -> tuple["Shape | None", list[Tensor]]:
        """The shape of a batch, and its tensors; None and no tensors if it holds anything but tensors."""
        if type(batch) in (tuple, list) and all(type(part) is Tensor for part in batch):  # the usual case, and faster
            return cls((type(batch), len(batch)), tuple((p.shape, p.dtype, p.stride()) for p in batch)), list(batch)
        leaves, spec = pytree.tree_flatten(batch)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None, []
        return cls(spec, tuple((leaf.shape, leaf.dtype, leaf.stride()) for leaf in leaves)), leaves


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A strategy's `adjust_loss` with the values that it needs.

    Attributes:
        hooks: the strategy.
        values: `LocalProblem.values`; for a client batch with a first dimension for the clients.
    """

    hooks: ClientHooks
    values: Tensors

    @property
    def tensors(self) -> list[Tensor]:
        """The values in the order in which a recorded step takes them."""
        return list(self.values.values())

    @property
    def key(self) -> Any:
        """Strategy, names and shapes; a recorded step is valid for values of an equal key."""
        shapes = ((name, value.shape, value.dtype, value.stride()) for name, value in self.values.items())
        return self.hooks, tuple(shapes)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded step.

    Attributes:
        shape: the shape of batches for which it is valid.
        graph: takes the trainable parameters, all buffers, the batch's tensors and the adjustment's values; returns the
            loss, the logged numbers, and the gradients.
        logged: name, reduction and batch size of each logged number.
        unused: indices of the trainable parameters without a gradient.
    """

    shape: Shape
    graph: fx.GraphModule
    logged: tuple[tuple[str, str, float | None], ...]
    unused: frozenset[int]


def record(
    model: BoundModel,
    batch: Any,
    *,
    context: Callable[[], contextlib.AbstractContextManager[Any]],
    stacked: bool = False,
    adjustment: Adjustment | None = None,
) -> Recorded:
    """Record the module's `training_step` and its gradients on a batch.

    Parameters, buffers and batch stay as they are. Randomness is drawn from the global generators.

    Args:
        model: any LightningModule, bound to its vector.
        batch: a batch, on the model's device.
        context: entered around the step: autocast, or nothing.
        stacked: record the step of many models as one, by `torch.func.vmap`: parameters and the batch's tensors have a
            first dimension for the models, and so have loss, logged numbers, gradients and the adjustment's values.
        adjustment: the strategy's change of the loss; the graph still returns the module's own loss.

    Raises:
        NotCapturableError: the step cannot be replayed.
    """
    module: pl.LightningModule = model.module  # type: ignore[assignment]
    shape, tensors = Shape.of(batch)
    if shape is None:
        raise NotCapturableError("batches hold more than tensors")
    tensors = [tensor.clone() for tensor in tensors]  # with the same strides
    parameters = [parameter.detach().clone() for parameter in model.trainable()]
    step = _Step(module, model.layout, batch, context, adjustment)
    values = [] if adjustment is None else [value.detach().clone() for value in adjustment.tensors]
    buffers = [buffer.detach().clone() for _, buffer in module.named_buffers()]
    with unchanged(module, [*model.trainable(), *module.buffers()]), torch.enable_grad():
        if stacked:
            # The step of one model shows which parameters get gradients.
            step(*parameters, *buffers, *(tensor[0] for tensor in (*tensors, *values)))
            rows = rows_of(model, len(tensors[0]))
            graph = make_fx(step.stacked)(*rows, *buffers, *tensors, *values)
        else:
            graph = make_fx(step)(*parameters, *buffers, *tensors, *values)
    arguments = [node for node in graph.graph.nodes if node.op == "placeholder"]
    given = {"parameters": arguments[: len(parameters)], "its batch": arguments[len(parameters) + len(buffers) :]}
    for name, nodes in given.items():
        if any(changes(reader) for node in nodes for reader in readers(node)):
            raise NotCapturableError(f"training_step changes {name}")
    simplify(graph)
    if gives_arguments(graph):  # whether a step may change that gradient depends on whether autograd has copied it
        raise NotCapturableError("a gradient shares memory with a parameter or the batch")
    own_gradients(graph, [i for i in range(len(parameters)) if i not in step.unused], layout=not stacked)
    return Recorded(shape, graph, tuple(step.logged), frozenset(step.unused))


def rows_of(model: BoundModel, count: int) -> list[Tensor]:
    """The parameters of `count` models, `[count, *shape]` each: views of a matrix with one model per row."""
    matrix = model.local.repeat(count, 1)
    return [matrix[:, entry.slice].view(-1, *entry.shape) for entry in model.layout.trained]


class _Step:
    """The recorded function: from parameters, buffers and a batch's tensors to loss, logged numbers and gradients."""

    def __init__(
        self,
        module: pl.LightningModule,
        layout: ParameterLayout,
        batch: Any,
        context: Callable[[], Any],
        adjustment: Adjustment | None,
    ) -> None:
        self.module, self.layout, self.context, self.adjustment = module, layout, context, adjustment
        self.names = [f"module.{entry.name}" for entry in layout.trained]
        self.buffers = [f"module.{name}" for name, _ in module.named_buffers()]
        self.leaves, self.spec = pytree.tree_flatten(batch)
        self.logged: list[tuple[str, str, float | None]] = []
        self.unused: list[int] = []
        self._values: list[Tensor] = []

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self.names)
        parameters = [tensor.requires_grad_() for tensor in tensors[:count]]
        loss, adjusted, values = self.loss(parameters, tensors[count:])
        gradients = torch.autograd.grad(adjusted, parameters, allow_unused=True)
        self.unused = [index for index, gradient in enumerate(gradients) if gradient is None]
        return (loss.detach(), *values, *(gradient for gradient in gradients if gradient is not None))

    def stacked(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The function for many models: parameters and batches have a first dimension for them, buffers are shared."""
        first, second = len(self.names), len(self.names) + len(self.buffers)
        buffers, unused = tensors[first:second], set(self.unused)

        def loss(parameters: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, Any]:
            loss, adjusted, values = self.loss(parameters, [*buffers, *leaves])
            return adjusted, (loss.detach(), values)

        def single(parameters: Sequence[Tensor], leaves: Sequence[Tensor]) -> Any:
            gradients, (value, values) = torch.func.grad(loss, has_aux=True)(parameters, leaves)
            return value, *values, *(g for index, g in enumerate(gradients) if index not in unused)

        return torch.vmap(single, randomness="different")(tensors[:first], tensors[second:])  # type: ignore[no-any-return]

    def loss(self, parameters: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The module's loss, the loss adjusted by the strategy, and the logged numbers."""
        self.logged, self._values = [], []
        buffers, rest = others[: len(self.buffers)], iter(others[len(self.buffers) :])
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        tensors = dict(zip([*self.names, *self.buffers], [*parameters, *buffers], strict=True))
        stand_in: Any = Watched()
        with (
            attached(self.module, stand_in),
            replaced(self.module, log=self._log, log_dict=self._log_dict),
            self.context(),
            observed(self.module, () if self.adjustment is None else self.adjustment.hooks.observes) as outputs,
        ):
            batch = pytree.tree_unflatten(leaves, self.spec)
            loss = loss_of(functional_call(_Recorded(self.module), tensors, (batch, Unused())))
        if loss is None:
            raise NotCapturableError("training_step skipped a batch")
        if self.adjustment is None:
            return loss, loss, self._values
        given = dict(zip(self.adjustment.values, rest, strict=True))
        named = {name.removeprefix("module."): tensors[name] for name in self.buffers}
        own = {name.removeprefix("module."): tensors[name] for name in self.names}
        step = LocalStep(self.module, self.layout, batch, given, outputs, parameters=own, buffers=named)
        with self.context():
            return loss, self.adjustment.hooks.adjust_loss(loss, step), self._values

    def _log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        if not isinstance(value, Tensor):
            kind = "a torchmetrics object" if isinstance(value, Metric) else "a number that is no tensor"
            raise NotCapturableError(f"training_step logs {kind} as {name!r}")
        reduce = options.get("reduce_fx", "mean")
        reduce = reduce if isinstance(reduce, str) else getattr(reduce, "__name__", "")
        if isinstance(options.get("batch_size"), Tensor):
            raise NotCapturableError(f"training_step logs {name!r} with a tensor as its batch size")
        if value.numel() != 1:
            raise NotCapturableError(f"training_step logs {value.numel()} numbers as {name!r}")
        self.logged.append((name, reduce, options.get("batch_size")))
        self._values.append(value.detach().reshape(()))

    def _log_dict(self, dictionary: Any, *args: Any, **options: Any) -> None:
        for name, value in dictionary.items():
            self._log(name, value, **options)


class _Recorded(StepModule):
    """Refuses a step that replaces buffers, which a replay would not do."""

    def forward(self, batch: Any, batch_idx: int = 0) -> Any:
        given = dict(self.module.named_buffers())
        output = super().forward(batch, batch_idx)
        if any(given.get(name) is not buffer for name, buffer in self.module.named_buffers()):
            raise NotCapturableError("training_step replaces buffers of the module")
        return output


class Watched:
    """Stands for `self.trainer` in code that must not depend on it, and refuses all reads."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotCapturableError(f"it reads Trainer.{name}")


class Unused(int):
    """Stands for `batch_idx` while a step is recorded, and refuses all uses."""


def _refuse(*args: Any, **options: Any) -> NoReturn:
    raise NotCapturableError("training_step depends on batch_idx")


for _name in (
    "eq ne lt le gt ge add radd sub rsub mul rmul mod rmod divmod rdivmod floordiv rfloordiv truediv rtruediv pow rpow "
    "and rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert round index int float bool hash "
    "str repr format"
).split():
    setattr(Unused, f"__{_name}__", _refuse)
