"""The eager loop with private steps: Poisson batches, clipped sums of per-sample gradients, noise."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flrl.lightning.transfer import to_device
from flrl.trainers.adjusting import frozen
from flrl.trainers.base import Trainer
from flrl.trainers.loop import Loop
from flrl.trainers.private.clipped_sum import ClippedSum
from flrl.trainers.private.dp_sgd import DPSGD
from flrl.trainers.private.separable import check_separable, labels_at
from flrl.trainers.problem import LocalProblem
from flrl.trainers.steps.capturing import NotCapturableError

Sum = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], tuple[Tensor, ...]]
"""`ClippedSum.__call__`, or a recording of it."""


class PrivateLoop(Loop):
    """The loop over one client's private steps; arguments as for `Loop`."""

    def __init__(self, trainer: Trainer, problem: LocalProblem, *rest: Any) -> None:
        super().__init__(trainer, problem, *rest)
        assert trainer.private is not None
        self.private: DPSGD = trainer.private
        self.dropped = frozen(problem.model.layout, problem.trainable)
        layout = problem.model.layout
        self.places = [place for place in range(len(layout.trained)) if place not in set(self.dropped)]
        self.steps_taken = 0

    def epoch(self, epoch: int) -> None:
        """Take the private steps of one local epoch."""
        last = self.stand_in.num_training_batches - 1
        for batch_idx in range(last + 1):
            self.zero_grad(epoch, batch_idx)
            self.private_gradient(batch_idx)
            if "on_after_backward" in self.overridden:
                self.module.on_after_backward()
            self.step_along_gradients()
            self.stand_in.global_step += 1
            self.steps_taken += 1
            self.step_schedulers(batch_idx, is_last=batch_idx == last)

    def private_gradient(self, batch_idx: int) -> None:
        """Set the gradients: clipped sum and noise over the expected size of a batch."""
        problem, size = self.problem, self.trainer.batch_size
        parameters = [self.parameters[place] for place in self.places]
        total = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64)
        indices = self.private.batch(problem, size, self.steps_taken)
        logs = Logs()
        for chunk in self.private.chunks(indices):
            total += self._clipped_sum(chunk, batch_idx, logs).cpu()
        if logs.count:
            self.log.batch_size = logs.count
            loss, logged = logs.means()
            self.log.add_loss(torch.tensor(loss, dtype=torch.float64))
            for name, reduce, value in logged:
                self.log.log(name, torch.tensor(value, dtype=torch.float64), reduce_fx=reduce)
        total += self.private.noise(problem, len(total), self.steps_taken)
        total /= min(size, max(1, len(problem.indices)))
        gradient = total.to(self.device, self.problem.model.layout.dtype)
        for parameter, part in zip(parameters, torch.split(gradient, [p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter.dtype)

    def _clipped_sum(self, indices: Any, batch_idx: int, logs: "Logs") -> Tensor:
        """The clipped sum of some samples as one vector, float64."""
        (batch, count), *more = [(b, len(indices)) for b in self.problem.source.batches(indices, len(indices))]
        assert not more
        rows = self.private.rows(count, self.trainer.batch_size)
        batch = to_device(self.module, padded(batch, count, rows), self.device)
        check_separable(self.problem.model, batch, count, labels_at(self.problem, indices))
        function, call = self.function(batch, batch_idx)
        weights = (torch.arange(rows, device=self.device) < count).to(torch.float32)
        tensors = self.tensors()
        leaves = pytree.tree_leaves(batch)
        values = vmapped(call, tensors, leaves, weights)
        kept = 1 + len(function.logged)
        logs.add(function.logged, values[:kept], count)
        total = torch.cat(values[kept:])
        if not total.isfinite().all():
            function.leaves_out = True
            total = torch.cat(vmapped(function, tensors, leaves, weights)[kept:])
            function.leaves_out = False
        return total.detach().double()

    def tensors(self) -> list[Tensor]:
        """The first argument of `ClippedSum.__call__`."""
        others = [self.parameters[place] for place in self.dropped]
        trained = [self.parameters[place] for place in self.places]
        return [tensor.detach() for tensor in (*trained, *others, *self.module.buffers())]

    def function(self, batch: Any, batch_idx: int) -> tuple[ClippedSum, Sum]:
        """The clipped sum for batches like this, and what to call for it."""
        function = self.clipped_sum(batch)
        function.batch_idx = batch_idx
        return function, function

    def clipped_sum(self, batch: Any) -> ClippedSum:
        """A new function for batches like this."""
        layout = self.problem.model.layout
        return ClippedSum(
            self.module, layout, self.places, self.private, batch, lambda: self.trainer.autocast(self.device)
        )


class Logs:
    """Losses and logged numbers of a step over the parts of its batch."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []
        self.names: list[tuple[str, str]] = []

    def add(self, names: Sequence[tuple[str, str]], values: Sequence[Tensor], count: int) -> None:
        """Add those of some samples, the first `count` of each of the values, whose first are the losses."""
        sums = [value.detach()[:count].double().sum() for value in values]
        self.sums = sums if not self.count else [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.names, self.count = list(names), self.count + count

    def means(self) -> tuple[float, list[tuple[str, str, float]]]:
        """The mean loss of the samples, and name, reduction and mean of each logged number."""
        loss, *logged = torch.stack(self.sums).tolist()
        named = zip(self.names, logged, strict=True)
        return loss / self.count, [(name, reduce, value / self.count) for (name, reduce), value in named]


def padded(batch: Any, count: int, rows: int) -> Any:
    """A batch with its first sample repeated at the end, so that it has that many rows.

    Raises:
        ValueError: it holds more than tensors with a first dimension for samples.
    """
    leaves, spec = pytree.tree_flatten(batch)
    if not all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count for leaf in leaves):
        raise ValueError("trainer.private: batches must be tensors whose first dimension is that of the samples")
    if rows > count:
        leaves = [torch.cat([leaf, leaf[:1].expand(rows - count, *leaf.shape[1:])]) for leaf in leaves]
    return pytree.tree_unflatten(leaves, spec)


def vmapped(call: Sum, tensors: Sequence[Tensor], leaves: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    """The values of a clipped sum.

    Raises:
        ValueError: the training step cannot be taken for single samples, or it changes buffers.
    """
    try:
        return call(tensors, leaves, weights)
    except (NotCapturableError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"trainer.private: training_step cannot be taken for each sample by torch.func.vmap: {first}"
        ) from error
