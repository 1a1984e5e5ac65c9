"""Many clients at once: their models are rows of a matrix, and one step of `torch.func.vmap` trains all of them.

It pays where a model is so small that a step's time goes into calls rather than arithmetic, and on a GPU. Each client's
steps are those that the eager engine takes, up to rounding; how many clients share a step changes nothing.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import ceil
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from flrl.data.sources import TensorSource
from flrl.layout import BoundModel, ParameterLayout
from flrl.lightning_hooks import overridden
from flrl.seeding import isolated_randomness, seed_for
from flrl.snapshot import Snapshot
from flrl.trainers.base import (
    TRANSFER_HOOKS,
    ClientHalf,
    LocalProblem,
    Trainer,
    client_randomness,
    trained,
)
from flrl.trainers.capture import NotCapturableError, Recorded, Shape, Watched, record, rows_of
from flrl.trainers.eager import EagerTrainer
from flrl.trainers.graphs import random_nodes, root, runnable
from flrl.trainers.modules import reduced
from flrl.trainers.optimizers import SchedulerStep, parse_optimizers, scale_learning_rates
from flrl.trainers.stand_in import TrainerStandIn, attached, configure
from flrl.trainers.traced import OTHER_INDICES, optimizer_is_watched, own_step, refuse_hooks
from flrl.types import ClientUpdate

ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")
"""Optimizers of torch that step each number by itself, so that they can step many models as one."""
_STACK_BYTES = {"cpu": 2**24, "cuda": 2**30}
_MOST = 128
_DIFFERENCE = {"32-true": 1e-3, "bf16-mixed": 0.3}
"""How far a stack's step may be from the module's own, relatively; bfloat16's rounding may choose another maximum."""
_SMALL_DIFFERENCE = 1e-5


class VectorizedTrainer(EagerTrainer):
    """Trains up to `width` clients side by side.

    The last bits of a step may depend on how many share it: stacks are made of the cohort alone, whoever trains them.

    Args:
        width: clients in a stack; null divides the cohort into 2, 4, 6, ... equal stacks, the fewest that have
            parameters of no more than 16 MiB each (1 GiB on a GPU) and no more than 128 clients.
        options: as for `flrl.trainers.base.Trainer`, without `keep_optimizer_state`.
    """

    def __init__(self, *, width: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if width is not None and width < 1:
            raise ValueError(f"trainer.width={width}: must be at least 1, or null")
        if self.keep_optimizer_state:
            raise ValueError("trainer=vectorized does not keep optimizer states: use trainer=traced")
        if self.memory_format != "contiguous":
            raise ValueError("trainer=vectorized has stacks of images, not images: trainer.memory_format=contiguous")
        self.width = width
        self._steps: tuple[pl.LightningModule, dict[Any, _Step]] | None = None

    def check(self, module: pl.LightningModule) -> None:
        """Refuse what eager refuses, and what cannot be done to many models as one."""
        super().check(module)
        norms = sorted({type(part).__name__ for part in module.modules() if isinstance(part, _BatchNorm)})
        if norms:
            raise ValueError(
                f"trainer=vectorized does not train {', '.join(norms)}, whose statistics a step changes: "
                "use GroupNorm, or trainer=traced"
            )
        dtype = ParameterLayout(module).dtype
        if any(parameter.dtype != dtype for parameter in module.parameters() if parameter.requires_grad):
            raise ValueError(f"trainer=vectorized needs all parameters to be of one dtype, {dtype}: use trainer=traced")
        before = Snapshot(module, "module", spared=[*module.parameters(), *module.buffers()])
        with attached(module, TrainerStandIn(self.local_epochs, 1, engine=self.engine)) as stand_in:
            optimizer, _ = configure(module, stand_in)
        changed = before.changed()
        before.restore()
        if changed:
            raise ValueError(
                f"trainer=vectorized: configure_optimizers changes {', '.join(changed[:3])}, which recorded steps "
                "would not see: use trainer=traced"
            )
        name = type(optimizer).__name__
        if name not in ELEMENTWISE or type(optimizer) is not getattr(torch.optim, name):
            raise ValueError(f"trainer=vectorized does not know that {name} steps elementwise: use trainer=traced")
        transfers = [hook for hook in TRANSFER_HOOKS if overridden(module, hook)]
        if transfers:
            raise ValueError(
                f"trainer=vectorized does not call {', '.join(transfers)} for each client: use trainer=traced"
            )
        if optimizer_is_watched(optimizer):
            raise ValueError(
                f"trainer=vectorized steps many clients at once, which hooks of {name} would see: use trainer=traced"
            )
        try:
            refuse_hooks(module)
        except NotCapturableError as error:
            raise ValueError(f"trainer=vectorized: {error}; use trainer=eager") from error

    def clients_at_once(self, model: BoundModel, cohort: int) -> int:
        """Clients in a stack."""
        if self.width is not None:
            return self.width
        room = _STACK_BYTES.get(model.vector.device.type, 2**24)
        most = max(1, min(_MOST, room // max(1, model.vector.nbytes)))
        pairs = max(1, ceil(cohort / (2 * most)))
        return max(1, ceil(cohort / (2 * pairs)))

    def fit(self, problem: LocalProblem, half: ClientHalf) -> ClientUpdate:
        """Train one client, as a stack of its own."""
        return self.fit_together([problem], half)[0]

    def fit_together(self, problems: Sequence[LocalProblem], half: ClientHalf) -> list[ClientUpdate]:
        """Train clients side by side; their updates in the order of the problems.

        Raises:
            ValueError: the samples are not in memory, or the step cannot be done to many models as one.
        """
        if half.adjusts_loss:
            raise ValueError("trainer=vectorized takes no strategy that adjusts the loss: use trainer=eager")
        if not isinstance(problems[0].source, TensorSource):
            raise ValueError("trainer=vectorized needs samples in memory (TensorSource): use trainer=traced")
        if self._steps is None or self._steps[0] is not problems[0].module:
            self._steps = problems[0].module, {}
        stack = _Stack(self, problems, half)
        updates = {update.client_id: update for update in stack.train()}
        return [updates[problem.task.client_id] for problem in problems]

    def groups(self, problems: Sequence[LocalProblem]) -> list[list[LocalProblem]]:
        """All clients; with schedulers, or an optimizer that looks at the Trainer, those with equally many batches."""
        module = problems[0].module
        try:
            with attached(module, Watched()):  # type: ignore[arg-type]
                depends = bool(parse_optimizers(module.configure_optimizers())[1])
        except NotCapturableError:
            depends = True
        groups: dict[int, list[LocalProblem]] = {}
        for problem in problems:
            groups.setdefault(self.num_batches(problem) if depends else 0, []).append(problem)
        return list(groups.values())

    def step(self, model: BoundModel, rows: int, batch: Any, shape: Shape | None) -> "_Step":
        """The recorded step of so many models, made when it is first asked for."""
        assert self._steps is not None
        steps = self._steps[1]
        if (rows, shape) not in steps:
            with isolated_randomness(0, model.vector.device):
                steps[rows, shape] = _Step.of(self, model, batch)
        return steps[rows, shape]


@dataclass
class _Step:
    """A recorded step of a stack: the graph as a function, and the generators that its random numbers come from."""

    recorded: Recorded
    call: Callable[..., Any]
    generators: list[torch.Generator]

    @classmethod
    def of(cls, trainer: Trainer, model: BoundModel, batch: Any) -> "_Step":
        """Record the step of a stack on its batch; ValueError if that cannot be done."""
        generators: list[torch.Generator] = []
        try:
            recorded = record(model, batch, context=lambda: trainer.autocast(model.vector.device), stacked=True)
            _draw_by_row(recorded.graph, generators)
            _check_lookups(recorded.graph)
            step = cls(recorded, runnable(recorded.graph), generators)
            step.compare(trainer, model, batch)
        except NotCapturableError as error:
            raise ValueError(f"trainer=vectorized cannot train {type(model.module).__name__}: {error}") from error
        return step

    def compare(self, trainer: Trainer, model: BoundModel, batch: Any) -> None:
        """Raise NotCapturableError if the first or the last row's step is not that of the module itself."""
        _, tensors = Shape.of(batch)
        count = len(tensors[0])
        self.generators[:] = [torch.Generator(model.vector.device).manual_seed(1) for _ in range(count)]
        try:
            values = self.call(*rows_of(model, count), *model.module.buffers(), *tensors)
        except RuntimeError as error:
            raise NotCapturableError(f"a replay fails: {str(error).splitlines()[0]}") from error
        found = [values[0], *values[1 + len(self.recorded.logged) :]]
        for row, batch_idx in zip((0, count - 1), OTHER_INDICES, strict=True):
            alone = own_step(trainer, model, pytree.tree_map(operator.itemgetter(row), batch), batch_idx)
            own = torch.cat([value.reshape(-1) for value in alone])
            stacked = torch.cat([value[row].reshape(-1) for value in found])
            limit = _DIFFERENCE[trainer.precision] * float(own.norm()) + _SMALL_DIFFERENCE
            if own.shape != stacked.shape or float((own - stacked).norm()) > limit:
                raise NotCapturableError(
                    "the step of a stack differs from the module's own (random numbers in another order?); "
                    "use trainer=traced"
                )


def _draw_by_row(graph_module: fx.GraphModule, generators: list[torch.Generator]) -> None:
    """Let every row of a stack draw from a generator of its own, as the client would alone."""

    def by_row(op: Callable[..., Any], fresh: Callable[..., Tensor] | None) -> Callable[..., Any]:
        def draw(first: Any, *args: Any, **options: Any) -> Tensor:
            tensor: Tensor = first if fresh is None else fresh(first, **options)
            for row, generator in zip(tensor, generators, strict=True):
                op(row, *args, generator=generator)
            return tensor

        return draw

    for node in random_nodes(graph_module):
        name = str(node.target).removeprefix("aten.")
        if name not in _DRAWS:
            raise ValueError(f"trainer=vectorized cannot draw {name} for each client by itself: use trainer=traced")
        node.target = by_row(*_DRAWS[name])


def _check_lookups(graph_module: fx.GraphModule) -> None:
    """Let a lookup beyond a client's table raise: `vmap` makes one table of all, where it would find another's row."""

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


# How to draw a row: in place, and into what.
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


@dataclass
class _Row:
    """One client of a stack.

    Attributes:
        problem: the client.
        batches: all that it trains on, with their numbers of samples.
        num_steps: how many.
        generator: what its random numbers come from.
        losses: and their weights.
        logged: numbers and their weights, by name.
    """

    problem: LocalProblem
    batches: Iterator[tuple[Any, int]]
    num_steps: int
    generator: torch.Generator
    losses: list[tuple[float, float]] = field(default_factory=list)
    logged: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


class _Stack:
    """Clients that train side by side: those with most steps in the first rows, so that the others leave at the end."""

    def __init__(self, trainer: VectorizedTrainer, problems: Sequence[LocalProblem], half: ClientHalf) -> None:
        self.trainer, self.half = trainer, half
        self.model, self.module = problems[0].model, problems[0].module
        self.device = self.model.vector.device
        self.rows = [self._row(problem) for problem in sorted(problems, key=lambda p: -trainer.num_batches(p))]
        self.matrix = problems[0].broadcast.vector.repeat(len(self.rows), 1)
        layout = self.model.layout
        self.trainable = self.matrix[:, : layout.num_trainable]
        entries = layout.entries[: len(self.model.trainable())]
        self.parameters = [self.matrix[:, e.slice].view(-1, *e.shape) for e in entries]
        self.buffers = list(self.module.buffers())
        self.notes: list[tuple[list[int], list[int], Recorded, list[Tensor]]] = []

    def _row(self, problem: LocalProblem) -> _Row:
        trainer, task = self.trainer, problem.task
        batches = chain.from_iterable(trainer.batches(problem, epoch) for epoch in range(trainer.local_epochs))
        seed = seed_for(problem.seed, task.round, task.client_id, "train")
        generator = torch.Generator(self.device).manual_seed(seed)
        return _Row(problem, batches, trainer.local_epochs * trainer.num_batches(problem), generator)

    def train(self) -> list[ClientUpdate]:
        """All steps of all clients."""
        first = self.rows[0].problem
        self.trainer.load(first)
        stand_in = TrainerStandIn(
            self.trainer.local_epochs, self.trainer.num_batches(first), engine=self.trainer.engine
        )
        with client_randomness(first), attached(self.module, stand_in):
            optimizer, schedulers = configure(self.module, stand_in)
            scale_learning_rates(optimizer, schedulers, self.trainer.lr_factor(first))
            stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            self.stepped = [id(parameter) in stepped for parameter in self.model.trainable()]
            stacked = _stacked(optimizer, self.model.trainable(), self.parameters)
            active = len(self.rows)
            for step in range(self.rows[0].num_steps):
                if self.rows[active - 1].num_steps <= step:
                    active = sum(row.num_steps > step for row in self.rows)
                    _shrink(optimizer, stacked.values(), active)
                with torch.no_grad():
                    gradients = self._gradients(active)
                self._adjust(gradients, active)
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    stacked[id(parameter)].grad = gradient
                optimizer.step()
                self._step_schedulers(schedulers, step)
        self._read_notes()
        return [self._update(index) for index in range(len(self.rows))]

    def _gradients(self, active: int) -> list[Tensor | None]:
        """Those of the first rows' next batches: rows with equally large batches share a step."""
        batches = [next(row.batches) for row in self.rows[:active]]
        sizes: dict[int, list[int]] = {}
        for index, (_, size) in enumerate(batches):
            sizes.setdefault(size, []).append(index)
        if len(sizes) == 1:
            return self._step(range(active), [batch for batch, _ in batches], batches[0][1])
        found: list[Tensor | None] = [None] * len(self.parameters)
        used: set[tuple[bool, ...]] = set()
        for size, indices in sizes.items():
            part = self._step(indices, [batches[index][0] for index in indices], size)
            used.add(tuple(gradient is not None for gradient in part))
            if len(used) > 1:
                raise ValueError("trainer=vectorized: which parameters get gradients depends on the size of a batch")
            for place, gradient in enumerate(part):
                if gradient is not None:
                    if found[place] is None:
                        found[place] = torch.zeros_like(self.parameters[place][:active])
                    found[place][indices] = gradient  # type: ignore[index]
        return found

    def _step(self, indices: Sequence[int], batches: Sequence[Any], size: int) -> list[Tensor | None]:
        """The gradients of some rows, in their order; the last one is repeated up to a power of two.

        A step is recorded for each number of rows, so there must not be too many numbers.
        """
        count = len(indices)
        total = _rounded(count, len(self.rows))
        if indices == range(count):  # views; those that fill up have left, or wait for their turn
            parameters = [p[:total] for p in self.parameters]
        else:
            rows = [*indices, *[indices[-1]] * (total - count)]
            parameters = [p[rows] for p in self.parameters]
        batch = self._together([*batches, *[batches[-1]] * (total - count)])
        shape, tensors = Shape.of(batch)
        step = self.trainer.step(self.model, total, batch, shape)
        step.generators[:] = [self.rows[row].generator for row in indices]
        step.generators += [torch.Generator(self.device).manual_seed(0)] * (total - count)
        values = step.call(*parameters, *self.buffers, *tensors)
        kept = 1 + len(step.recorded.logged)
        self.notes.append((list(indices), [size] * count, step.recorded, list(values[:kept])))
        gradients = iter(values[kept:])
        unused = step.recorded.unused
        return [None if place in unused else next(gradients)[:count] for place in range(len(parameters))]

    def _together(self, batches: Sequence[Any]) -> Any:
        """Batches of equal shapes as one on the device, with a first dimension for the clients."""
        stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *batches)
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), stacked)

    def _adjust(self, gradients: list[Tensor | None], active: int) -> None:
        """Let the strategy change each client's gradient, then clip it."""
        limit = self.trainer.gradient_clip_val
        if self.half.adjusts_gradient:
            pairs = zip(gradients, self.parameters, strict=True)
            whole = [torch.zeros_like(p[:active]) if g is None else g for g, p in pairs]
            matrix = torch.cat([gradient.reshape(active, -1) for gradient in whole], dim=1)
            for index, row in enumerate(self.rows[:active]):
                self.half.adjust_gradient(matrix[index], self.trainable[index], row.problem)
            parts = torch.split(matrix, [p[0].numel() for p in self.parameters], dim=1)
            gradients[:] = [part.reshape_as(p[:active]) for part, p in zip(parts, self.parameters, strict=True)]
        if limit is None:
            return
        found = [g for g, stepped in zip(gradients, self.stepped, strict=True) if g is not None and stepped]
        if self.trainer.gradient_clip_algorithm == "value":
            for gradient in found:
                gradient.clamp_(-limit, limit)
            return
        norms = torch.stack([gradient.reshape(active, -1).norm(dim=1) for gradient in found]).norm(dim=0)
        factors = (limit / (norms + 1e-6)).clamp_(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
        for gradient in found:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    def _step_schedulers(self, schedulers: Sequence[SchedulerStep], step: int) -> None:
        """Step those whose interval ends here; with schedulers, all rows have equally many batches an epoch."""
        epoch, batch_idx = divmod(step, self.trainer.num_batches(self.rows[0].problem))
        is_last = batch_idx == self.trainer.num_batches(self.rows[0].problem) - 1
        for config in schedulers:
            if config.interval == "epoch" and not is_last:
                continue
            if ((batch_idx if config.interval == "step" else epoch) + 1) % config.frequency == 0:
                config.scheduler.step()

    def _read_notes(self) -> None:
        """Hand out losses and logged numbers to the rows that they belong to."""
        for indices, sizes, recorded, values in self.notes:
            losses, *logged = (value.to(torch.float64).tolist() for value in values)
            for place, (index, size) in enumerate(zip(indices, sizes, strict=True)):
                self.rows[index].losses.append((losses[place], float(size)))
                for (name, _, weight), numbers in zip(recorded.logged, logged, strict=True):
                    pairs = self.rows[index].logged.setdefault(name, [])
                    pairs.append((numbers[place], float(size if weight is None else weight)))

    def _update(self, index: int) -> ClientUpdate:
        row = self.rows[index]
        how = {name: reduce for _, _, recorded, _ in self.notes for name, reduce, _ in recorded.logged}
        metrics = {name: reduced(how[name], pairs) for name, pairs in row.logged.items()}
        metrics["train/loss"] = reduced("mean", row.losses)
        return trained(row.problem, self.matrix[index], metrics=metrics, num_steps=row.num_steps)


def _rounded(count: int, most: int) -> int:
    """The next power of two, or `most` if that is less."""
    return min(1 << (count - 1).bit_length(), most)


def _stacked(optimizer: Optimizer, parameters: Sequence[nn.Parameter], stacks: Sequence[Tensor]) -> dict[int, Tensor]:
    """Let an optimizer step stacks instead of the module's parameters; the tensors it steps, by their stacks' ids."""
    place = {id(parameter): stack for parameter, stack in zip(parameters, stacks, strict=True)}
    stepped = {id(stack): stack.detach() for stack in stacks}
    for group in optimizer.param_groups:
        group["params"] = [stepped[id(place[id(p)])] for p in group["params"] if id(p) in place]
        if group.get("fused"):
            group["fused"] = False  # those kernels take memory without gaps
    if optimizer.state:  # Adagrad and others make theirs at once
        old, optimizer.state = optimizer.state, type(optimizer.state)(dict)
        for parameter, state in old.items():
            stack = stepped[id(place[id(parameter)])]
            optimizer.state[stack] = {
                name: value.expand(len(stack), *value.shape).clone()
                if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step"
                else value
                for name, value in state.items()
            }
    return stepped


def _shrink(optimizer: Optimizer, stacks: Iterable[Tensor], active: int) -> None:
    """Let an optimizer step the first rows only."""
    for stack in stacks:
        state = optimizer.state.get(stack, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == stack.shape:
                state[name] = value[:active]
        stack.grad = None
        stack.data = stack.data[:active]
