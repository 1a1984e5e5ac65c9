"""A module's training step as a recorded list of tensor operations, gradients included, that can be replayed.

A replay does what `training_step` and `backward` did when they were recorded, without Python of the module and without
autograd, and ends in the same bits. That is right as long as the step does the same operations for every batch of the
same shapes: what can be seen to break this while it is recorded is refused.
"""

import contextlib
import pickle
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torchmetrics import Metric

from flrl.layout import BoundModel
from flrl.snapshot import Snapshot
from flrl.trainers.graphs import changes, gives_arguments, readers, settle_gradients, simplify
from flrl.trainers.modules import loss_of, replaced, step_caller
from flrl.trainers.stand_in import attached


class NotCapturableError(Exception):
    """Why a step cannot be recorded and replayed."""


class Shape(NamedTuple):
    """What must be equal for a recorded step to hold for another batch."""

    spec: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, batch: Any) -> tuple["Shape | None", list[Tensor]]:
        """The shape of a batch, and its tensors; None where it holds anything else, which may differ in each."""
        if type(batch) in (tuple, list) and all(type(part) is Tensor for part in batch):  # most are, and this is quick
            return cls((type(batch), len(batch)), tuple((p.shape, p.dtype, p.stride()) for p in batch)), list(batch)
        leaves, spec = pytree.tree_flatten(batch)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            return None, []
        return cls(spec, tuple((leaf.shape, leaf.dtype, leaf.stride()) for leaf in leaves)), leaves


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded step.

    Attributes:
        shape: of the batches that it holds for.
        graph: takes the trainable parameters, all buffers and the batch's tensors; gives the loss, what was logged, and
            the gradients.
        logged: name, reduction and batch size of each logged number.
        unused: parameters without a gradient, by their place.
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
) -> Recorded:
    """Record the module's `training_step` and its gradients on a batch.

    Parameters, buffers and batch stay as they are. Randomness is drawn from the global generators.

    Args:
        model: any LightningModule, bound to its vector.
        batch: a batch, on the model's device.
        context: entered around the step: autocast, or nothing.
        stacked: the step of many models as one, by `torch.func.vmap`: parameters and the batch's tensors have a first
            dimension for the models, and so have loss, logged numbers and gradients.

    Raises:
        NotCapturableError: the step cannot be replayed, and why.
    """
    module: pl.LightningModule = model.module  # type: ignore[assignment]
    shape, tensors = Shape.of(batch)
    if shape is None:
        raise NotCapturableError("batches hold more than tensors")
    tensors = [tensor.clone() for tensor in tensors]  # of the same strides
    parameters = [parameter.detach().clone() for parameter in model.trainable()]
    step = _Step(module, [entry.name for entry in model.layout.entries[: len(parameters)]], batch, context)
    buffers = [buffer.detach().clone() for _, buffer in module.named_buffers()]
    before, generators = (
        Snapshot(module, "module", spared=[*model.trainable(), *module.buffers()]),
        _python_generators(),
    )
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            if stacked:
                step(*parameters, *buffers, *(tensor[0] for tensor in tensors))  # tells which gradients there are
                rows = rows_of(model, len(tensors[0]))
                graph = make_fx(step.stacked)(*rows, *buffers, *tensors)
            else:
                graph = make_fx(step)(*parameters, *buffers, *tensors)
    except NotCapturableError:
        raise
    except Exception as error:
        raise NotCapturableError(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150]}") from error
    finally:
        changed = before.changed()
        before.restore()
    if changed:
        raise NotCapturableError(f"training_step changes {', '.join(changed[:3])}")
    if _python_generators() != generators:
        raise NotCapturableError("training_step draws random numbers from Python or NumPy")
    arguments = [node for node in graph.graph.nodes if node.op == "placeholder"]
    given = {"parameters": arguments[: len(parameters)], "its batch": arguments[len(parameters) + len(buffers) :]}
    for name, nodes in given.items():
        if any(changes(reader) for node in nodes for reader in readers(node)):
            raise NotCapturableError(f"training_step changes {name}")
    simplify(graph)
    if gives_arguments(graph):  # a step would change it, or not, as autograd happened to copy it
        raise NotCapturableError("a gradient shares memory with a parameter or the batch")
    settle_gradients(graph, [i for i in range(len(parameters)) if i not in step.unused], layout=not stacked)
    return Recorded(shape, graph, tuple(step.logged), frozenset(step.unused))


def rows_of(model: BoundModel, count: int) -> list[Tensor]:
    """The parameters of so many models, as parts of a matrix with a row for each: not contiguous, as when replayed."""
    matrix = model.vector.repeat(count, 1)
    entries = model.layout.entries[: len(model.trainable())]
    return [matrix[:, entry.slice].view(-1, *entry.shape) for entry in entries]


class _Step:
    """The function that is recorded: parameters, buffers and a batch's tensors to loss, logged numbers, gradients."""

    def __init__(self, module: pl.LightningModule, names: Sequence[str], batch: Any, context: Callable[[], Any]):
        self.module, self.names, self.context = module, [f"module.{name}" for name in names], context
        self.buffers = [f"module.{name}" for name, _ in module.named_buffers()]
        self.leaves, self.spec = pytree.tree_flatten(batch)
        self.logged: list[tuple[str, str, float | None]] = []
        self.unused: list[int] = []
        self._values: list[Tensor] = []

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self.names)
        parameters = [tensor.requires_grad_() for tensor in tensors[:count]]
        loss, values = self.loss(parameters, tensors[count:])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        self.unused = [index for index, gradient in enumerate(gradients) if gradient is None]
        return (loss.detach(), *values, *(gradient for gradient in gradients if gradient is not None))

    def stacked(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Likewise for stacks of parameters and batches; buffers are shared."""
        first, second = len(self.names), len(self.names) + len(self.buffers)
        buffers, unused = tensors[first:second], set(self.unused)

        def loss(parameters: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, Any]:
            loss, values = self.loss(parameters, [*buffers, *leaves])
            return loss, (loss.detach(), values)

        def single(parameters: Sequence[Tensor], leaves: Sequence[Tensor]) -> Any:
            gradients, (value, values) = torch.func.grad(loss, has_aux=True)(parameters, leaves)
            return value, *values, *(g for index, g in enumerate(gradients) if index not in unused)

        return torch.vmap(single, randomness="different")(tensors[:first], tensors[second:])  # type: ignore[no-any-return]

    def loss(self, parameters: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the logged numbers."""
        self.logged, self._values = [], []
        buffers, rest = others[: len(self.buffers)], iter(others[len(self.buffers) :])
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        tensors = dict(zip([*self.names, *self.buffers], [*parameters, *buffers], strict=True))
        stand_in: Any = Watched()
        with (
            attached(self.module, stand_in),
            replaced(self.module, log=self._log, log_dict=self._log_dict),
            self.context(),
        ):
            output = functional_call(_Wrapper(self.module), tensors, (pytree.tree_unflatten(leaves, self.spec),))
        loss = loss_of(output)
        if loss is None:
            raise NotCapturableError("training_step skipped a batch")
        return loss, self._values

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


class _Wrapper(nn.Module):
    """A module whose `forward` is the training step, as `functional_call` needs it."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Any:
        given = dict(self.module.named_buffers())
        output = step_caller(self.module.training_step)(batch, _Index())
        if any(given.get(name) is not buffer for name, buffer in self.module.named_buffers()):
            raise NotCapturableError("training_step replaces buffers of the module")
        return output


class Watched:
    """`self.trainer` for code that must not depend on it: what is read there changes from step to step."""

    def __getattr__(self, name: str) -> NoReturn:
        raise NotCapturableError(f"it reads Trainer.{name}")


class _Index(int):
    """`batch_idx` while a step is recorded: likewise."""


def _refuse(*args: Any, **options: Any) -> NoReturn:
    raise NotCapturableError("training_step depends on batch_idx")


for _name in (
    "eq ne lt le gt ge add radd sub rsub mul rmul mod rmod divmod rdivmod floordiv rfloordiv truediv rtruediv pow rpow "
    "and rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert round index int float bool hash "
    "str repr format"
).split():
    setattr(_Index, f"__{_name}__", _refuse)


def _python_generators() -> Any:
    return random.getstate(), pickle.dumps(np.random.get_state())
