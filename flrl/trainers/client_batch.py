"""A client batch in training: one local model per row, those with most steps first, so that the last rows end first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from flrl.lightning.logs import reduced
from flrl.lightning.optimizers import SchedulerStep, scale_learning_rates
from flrl.lightning.plain_sgd import not_plain_sgd
from flrl.lightning.stand_in import TrainerStandIn, attached, configure
from flrl.seeding import seed_for
from flrl.trainers.adjusting import by_row, check_elementwise, frozen, values_of_batch
from flrl.trainers.problem import ClientHooks, LocalProblem, Trained, client_randomness, trained
from flrl.trainers.steps.record import Adjustment, Recorded, Shape

if TYPE_CHECKING:
    from flrl.trainers.vectorized import VectorizedTrainer


@dataclass
class _Row:
    """One client of the batch.

    Attributes:
        problem: the client's problem.
        batches: its batches over all local epochs, with their numbers of samples.
        num_steps: number of these batches.
        generator: its random numbers.
        losses: loss and weight of each step.
        logged: value and weight of each logged number, by name.
        reduce: its reduction, by name.
    """

    problem: LocalProblem
    batches: Iterator[tuple[Any, int]]
    num_steps: int
    generator: torch.Generator
    losses: list[tuple[float, float]] = field(default_factory=list)
    logged: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    reduce: dict[str, str] = field(default_factory=dict)


class ClientBatch:
    """Clients that are trained at once.

    Args:
        trainer: gives settings and recorded steps.
        problems: the clients' problems, which agree in `trainable` and in the names of their values.
        hooks: the strategy.

    Attributes:
        rows: the clients, those with most steps first.
        matrix: their local vectors, `[clients, layout.local_size]`.
        trainable: its trainable part, `[clients, layout.num_trainable]`, a view.
        parameters: each trainable parameter of all clients, `[clients, *shape]`, views.
        values: the clients' values, see `values_of_batch`.
        rates: the learning rate of each step.
    """

    def __init__(self, trainer: "VectorizedTrainer", problems: Sequence[LocalProblem], hooks: ClientHooks) -> None:
        self.trainer, self.hooks = trainer, hooks
        self.model, self.module = problems[0].model, problems[0].module
        self.device = self.model.local.device
        self.rows = [self._row(problem) for problem in sorted(problems, key=lambda p: -trainer.num_batches(p))]
        ordered = [row.problem for row in self.rows]
        self.matrix = torch.stack([problem.start for problem in ordered])
        layout = self.model.layout
        self.trainable = self.matrix[:, : layout.num_trainable]
        self.parameters = [self.matrix[:, e.slice].view(-1, *e.shape) for e in layout.trained]
        self.frozen = frozenset(frozen(layout, ordered[0].trainable))
        self.buffers = list(self.module.buffers())
        self.values = values_of_batch(ordered)
        self.rates: list[float] = []
        self.outputs: list[tuple[list[int], list[int], Recorded, list[Tensor]]] = []

    def _row(self, problem: LocalProblem) -> _Row:
        trainer, task = self.trainer, problem.task
        num_steps = trainer.num_epochs(problem) * trainer.num_batches(problem)
        seed = seed_for(problem.seed, task.round, task.client_id, "train")
        generator = torch.Generator(self.device).manual_seed(seed)
        return _Row(problem, self._batches(problem), num_steps, generator)

    def _batches(self, problem: LocalProblem) -> Iterator[tuple[Any, int]]:
        epochs = range(self.trainer.num_epochs(problem))
        return chain.from_iterable(self.trainer.batches(problem, epoch) for epoch in epochs)

    def train(self) -> list[tuple[LocalProblem, Trained]]:
        """Take all steps of all clients; returns each problem with its result.

        Raises:
            ValueError: a step cannot be recorded, or which parameters get gradients depends on a batch's size.
        """
        first = self.rows[0].problem
        self.trainer.load(first)
        epochs, batches = self.trainer.num_epochs(first), self.trainer.num_batches(first)
        stand_in = TrainerStandIn(epochs, batches, engine=self.trainer.engine)
        with client_randomness(first), attached(self.module, stand_in):
            optimizer, schedulers = configure(self.module, stand_in)
            scale_learning_rates(optimizer, schedulers, self.trainer.lr_factor(first))
            stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            self.stepped = [id(parameter) in stepped for parameter in self.model.trainable()]
            stacked = _stepping_rows(optimizer, self.model.trainable(), self.parameters)
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
                self.rates.append(float(optimizer.param_groups[0]["lr"]))
                optimizer.step()
                self._step_schedulers(schedulers, step)
        self._read_outputs()
        other = not_plain_sgd(optimizer)
        return [(row.problem, self._trained(index, other)) for index, row in enumerate(self.rows)]

    def _gradients(self, active: int) -> list[Tensor | None]:
        """The gradients of the first `active` rows on their next batches; rows with equally large batches share a step.

        Returns:
            For each trainable parameter, the rows' gradients `[active, *shape]`; None if it gets none.
        """
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
        """The gradients of some rows, in order; the last row is repeated until their number is a power of two.

        A step is recorded for each number of rows, so these should be few.
        """
        count = len(indices)
        total = _rounded(count, len(self.rows))
        rows: Any = slice(total)  # views; the rows after the first `count` fill up the number
        if indices != range(count):
            rows = [*indices, *[indices[-1]] * (total - count)]
        parameters = [p[rows] for p in self.parameters]
        adjustment = self._adjustment(rows, total) if self.hooks.adjusts_loss else None
        batch = self._stacked([*batches, *[batches[-1]] * (total - count)])
        shape, tensors = Shape.of(batch)
        step = self.trainer.step(self.model, total, batch, shape, adjustment)
        step.generators[:] = [self.rows[row].generator for row in indices]
        step.generators += [torch.Generator(self.device).manual_seed(0)] * (total - count)
        others = [] if adjustment is None else adjustment.tensors
        values = step.call(*parameters, *self.buffers, *tensors, *others)
        kept, unused = 1 + len(step.recorded.logged), step.recorded.unused
        self.outputs.append((list(indices), [size] * count, step.recorded, list(values[:kept])))
        gradients = iter(values[kept:])
        return [None if place in unused else next(gradients)[:count] for place in range(len(parameters))]

    def _adjustment(self, rows: Any, total: int) -> Adjustment:
        """The strategy's change of the losses, with the values of some rows."""
        whole = {name: v.expand(len(self.rows), *v.shape[1:]) for name, v in self.values.items()}
        return Adjustment(self.hooks, {name: value[rows] for name, value in whole.items()})

    def _stacked(self, batches: Sequence[Any]) -> Any:
        """The clients' batches as one on the device, with a first dimension for the clients."""
        stacked = pytree.tree_map(lambda *parts: torch.stack(parts), *batches)
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self.device), stacked)

    def _adjust(self, gradients: list[Tensor | None], active: int) -> None:
        """Call `adjust_gradient` on the clients' gradients, drop those of frozen parameters, and clip the others."""
        if self.hooks.adjusts_gradient:
            self._let_strategy_adjust(gradients, active)
        for place in self.frozen:
            gradients[place] = None
        limit = self.trainer.gradient_clip_val
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

    def _let_strategy_adjust(self, gradients: list[Tensor | None], active: int) -> None:
        count = self.model.layout.num_parameters
        parameters = self.parameters[:count]
        pairs = zip(gradients[:count], parameters, strict=True)
        whole = [torch.zeros_like(p[:active]) if g is None else g for g, p in pairs]
        matrix = torch.cat([gradient.reshape(active, -1) for gradient in whole], dim=1)
        first = {name: value[0] for name, value in self.values.items()}
        check_elementwise(self.hooks, matrix[0], self.trainable[0], first)
        values = {name: by_row(value if len(value) == 1 else value[:active]) for name, value in self.values.items()}
        self.hooks.adjust_gradient(matrix, self.trainable[:active], values)
        parts = torch.split(matrix, [p[0].numel() for p in parameters], dim=1)
        gradients[:count] = [part.reshape_as(p[:active]) for part, p in zip(parts, parameters, strict=True)]

    def _step_schedulers(self, schedulers: Sequence[SchedulerStep], step: int) -> None:
        """Step the schedulers whose interval ends here; all rows then have equally many batches per epoch."""
        epoch, batch_idx = divmod(step, self.trainer.num_batches(self.rows[0].problem))
        is_last = batch_idx == self.trainer.num_batches(self.rows[0].problem) - 1
        for config in schedulers:
            if config.interval == "epoch" and not is_last:
                continue
            if ((batch_idx if config.interval == "step" else epoch) + 1) % config.frequency == 0:
                config.scheduler.step()

    def _read_outputs(self) -> None:
        """Add losses and logged numbers to the rows that they belong to."""
        for indices, sizes, recorded, values in self.outputs:
            losses, *logged = (value.to(torch.float64).tolist() for value in values)
            for place, (index, size) in enumerate(zip(indices, sizes, strict=True)):
                self.rows[index].losses.append((losses[place], float(size)))
                for (name, reduce, weight), numbers in zip(recorded.logged, logged, strict=True):
                    self.rows[index].reduce[name] = reduce
                    pair = numbers[place], float(size if weight is None else weight)
                    self.rows[index].logged.setdefault(name, []).append(pair)

    def _trained(self, index: int, other: str) -> Trained:
        row = self.rows[index]
        metrics = {name: reduced(row.reduce[name], pairs) for name, pairs in row.logged.items()}
        if row.losses:
            metrics["train/loss"] = reduced("mean", row.losses)
        return trained(
            row.problem,
            self.matrix[index],
            metrics=metrics,
            num_steps=row.num_steps,
            lr_sum=sum(self.rates[: row.num_steps]),
            not_plain_sgd=other,
            memory=self.trainer.position(row.problem),
        )


def _rounded(count: int, most: int) -> int:
    """The next power of two, or `most` if that is less."""
    return min(1 << (count - 1).bit_length(), most)


def _stepping_rows(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], stacked: Sequence[Tensor]
) -> dict[int, Tensor]:
    """Let an optimizer step all rows' parameters instead of the module's.

    Args:
        optimizer: the module's optimizer, before its first step.
        parameters: the module's trainable parameters.
        stacked: each of these parameters of all rows, `[rows, *shape]`.

    Returns:
        By the id of each stacked parameter, the tensor that the optimizer steps: it shares its memory.
    """
    place = {id(parameter): tensor for parameter, tensor in zip(parameters, stacked, strict=True)}
    stepped = {id(tensor): tensor.detach() for tensor in stacked}
    for group in optimizer.param_groups:
        group["params"] = [stepped[id(place[id(p)])] for p in group["params"] if id(p) in place]
        if group.get("fused"):
            group["fused"] = False  # fused kernels need contiguous parameters
    if optimizer.state:  # Adagrad and others make their state before the first step
        old, optimizer.state = optimizer.state, type(optimizer.state)(dict)
        for parameter, state in old.items():
            rows = stepped[id(place[id(parameter)])]
            optimizer.state[rows] = {
                name: value.expand(len(rows), *value.shape).clone()
                if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step"
                else value
                for name, value in state.items()
            }
    return stepped


def _shrink(optimizer: Optimizer, stacked: Iterable[Tensor], active: int) -> None:
    """Let the optimizer step the first `active` rows only of all `stacked` parameters."""
    for rows in stacked:
        state = optimizer.state.get(rows, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == rows.shape:
                state[name] = value[:active]
        rows.grad = None
        rows.data = rows.data[:active]
