"""One recorded step for many models: their parameters are rows of a matrix, `torch.func.vmap` trains all of them."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from flrl.bound_model import BoundModel
from flrl.seeding import drawing_from
from flrl.trainers.steps.capturing import NotCapturableError
from flrl.trainers.steps.graphs import random_nodes, root, runnable
from flrl.trainers.steps.record import Adjustment, Recorded, Shape, record, rows_of
from flrl.trainers.steps.safety import OTHER_INDICES, own_step

if TYPE_CHECKING:
    from flrl.trainers.base import Trainer

_DIFFERENCE = {"32-true": 1e-3, "bf16-mixed": 0.3}
"""Largest relative difference of a row's step from the module's own; in bfloat16 rounding may change an argmax."""
_TF32_DIFFERENCE = 0.1
"""The same on a GPU, which may round to TF32, as its convolutions do unless they are told not to.

Whether it does is not asked: torch refuses to say so once a process has used both ways of telling it.
"""
_SMALL_DIFFERENCE = 1e-5
"""Absolute difference that is allowed besides."""


@dataclass
class StackedStep:
    """A recorded step of a client batch.

    Attributes:
        recorded: the recorded step.
        call: its graph as a function.
        generators: a generator of random numbers for each row.
    """

    recorded: Recorded
    call: Callable[..., Any]
    generators: list[torch.Generator]

    @classmethod
    def of(
        cls, trainer: "Trainer", model: BoundModel, batch: Any, adjustment: Adjustment | None = None
    ) -> "StackedStep":
        """Record the step of many models.

        Args:
            trainer: gives precision.
            model: one of the models.
            batch: the models' batches as one, whose tensors have a first dimension for the models.
            adjustment: the strategy's change of the losses, whose values have a first dimension for the models too.

        Raises:
            ValueError: the step cannot be recorded.
        """
        generators: list[torch.Generator] = []
        try:
            context = partial(trainer.autocast, model.local.device)
            recorded = record(model, batch, context=context, stacked=True, adjustment=adjustment)
            _draw_by_row(recorded.graph, generators)
            _check_lookups(recorded.graph)
            step = cls(recorded, runnable(recorded.graph), generators)
            step.compare(trainer, model, batch, adjustment)
        except NotCapturableError as error:
            raise ValueError(f"trainer=vectorized cannot train {type(model.module).__name__}: {error}") from error
        return step

    def compare(self, trainer: "Trainer", model: BoundModel, batch: Any, adjustment: Adjustment | None) -> None:
        """Raise NotCapturableError if the first or the last row's step is not that of the module itself."""
        _, tensors = Shape.of(batch)
        count = len(tensors[0])
        self.generators[:] = [torch.Generator(model.local.device).manual_seed(1) for _ in range(count)]
        try:
            others = [] if adjustment is None else adjustment.tensors
            values = self.call(*rows_of(model, count), *model.module.buffers(), *tensors, *others)
        except RuntimeError as error:
            raise NotCapturableError(f"a replay fails: {str(error).splitlines()[0]}") from error
        found = [values[0], *values[1 + len(self.recorded.logged) :]]
        for row, batch_idx in zip((0, count - 1), OTHER_INDICES, strict=True):
            of_row = operator.itemgetter(row)
            adjusted = None
            if adjustment is not None:
                given = {name: of_row(value) for name, value in adjustment.values.items()}
                adjusted = Adjustment(adjustment.hooks, given)
            alone = own_step(trainer, model, pytree.tree_map(of_row, batch), batch_idx, adjusted)
            own = torch.cat([value.reshape(-1) for value in alone])
            stacked = torch.cat([value[row].reshape(-1) for value in found])
            limit = _difference(trainer.precision, model.local.device) * float(own.norm()) + _SMALL_DIFFERENCE
            if own.shape != stacked.shape or float((own - stacked).norm()) > limit:
                raise NotCapturableError(
                    "the step of a client batch differs from the module's own (random numbers in another order?); "
                    "use trainer=traced"
                )


def _difference(precision: str, device: torch.device) -> float:
    return max(_DIFFERENCE[precision], _TF32_DIFFERENCE if device.type == "cuda" else 0.0)


def _draw_by_row(graph_module: fx.GraphModule, generators: list[torch.Generator]) -> None:
    """Let every row draw random numbers from its own generator, as the client would alone."""

    def by_row(op: Callable[..., Any], fresh: Callable[..., Tensor] | None) -> Callable[..., Any]:
        def draw(first: Any, *args: Any, **options: Any) -> Tensor:
            tensor: Tensor = first if fresh is None else fresh(first, **options)
            for row, generator in zip(tensor, generators, strict=True):
                op(row, *args, generator=generator)
            return tensor

        return draw

    for node in random_nodes(graph_module):
        if node.target is torch.ops.aten.native_dropout.default:
            node.target = partial(_drop_by_row, generators)
            continue
        name = str(node.target).removeprefix("aten.")
        if name not in _DRAWS:
            raise ValueError(f"trainer=vectorized cannot draw {name} for each client by itself: use trainer=traced")
        node.target = by_row(*_DRAWS[name])


def _drop_by_row(generators: list[torch.Generator], tensor: Tensor, p: float, train: bool) -> tuple[Tensor, Tensor]:
    """Dropout as it is in one piece on a GPU: it takes no generator, so the global one draws as each row's would."""
    outputs, masks = [], []
    for row, generator in zip(tensor, generators, strict=True):
        with drawing_from(generator):
            output, mask = torch.native_dropout(row, p, train)
        outputs.append(output)
        masks.append(mask)
    return torch.stack(outputs), torch.stack(masks)


def _check_lookups(graph_module: fx.GraphModule) -> None:
    """Raise IndexError for an embedding index out of range: in the one table that `vmap` makes it would find a row."""

    def shifted(indices: Tensor, shifts: Tensor, *, size: int) -> Tensor:
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < size):
            raise IndexError("index out of range in self")
        return indices + shifts

    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.embedding.default:
            indices = node.args[1]
            shift = root(indices.args[1]) if indices.target is torch.ops.aten.add.Tensor else None
            if shift is not None and shift.target is torch.ops.aten.arange.start_step:
                indices.target = partial(shifted, size=shift.args[2])  # type: ignore[arg-type]


# How to draw one row: an in-place operator, and a function that makes the tensor to draw into (None: the argument).
_DRAWS: dict[str, tuple[Callable[..., Any], Callable[..., Tensor] | None]] = {
    "bernoulli_.float": (Tensor.bernoulli_, None),
    "uniform_.default": (Tensor.uniform_, None),
    "normal_.default": (Tensor.normal_, None),
    "exponential_.default": (Tensor.exponential_, None),
    "bernoulli.p": (Tensor.bernoulli_, torch.empty_like),
    "rand_like.default": (Tensor.uniform_, torch.empty_like),
    "randn_like.default": (Tensor.normal_, torch.empty_like),
    "rand.default": (Tensor.uniform_, torch.empty),
    "randn.default": (Tensor.normal_, torch.empty),
}
