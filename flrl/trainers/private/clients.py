"""Private steps of many clients at once: the samples of each by `torch.func.vmap`, and the clients by another one."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flrl.lightning.stand_in import attached
from flrl.lightning.transfer import to_device
from flrl.trainers.client_batch import ClientBatch
from flrl.trainers.private.clipped_sum import ClippedSum
from flrl.trainers.private.dp_sgd import DPSGD
from flrl.trainers.private.loop import Logs, padded, vmapped
from flrl.trainers.private.separable import check_separable, labels_at
from flrl.trainers.problem import LocalProblem
from flrl.trainers.steps.record import Watched


class PrivateClientBatch(ClientBatch):
    """Clients whose private steps are taken at once; arguments as for `ClientBatch`."""

    def __init__(self, trainer: Any, *rest: Any) -> None:
        super().__init__(trainer, *rest)
        self.private: DPSGD = trainer.private
        self.places = [place for place in range(len(self.parameters)) if place not in self.frozen]

    def _batches(self, problem: LocalProblem) -> Any:
        return iter(())  # they are drawn step by step

    def _gradients(self, active: int) -> list[Tensor | None]:
        """The private gradients of the first `active` rows, `[active, *shape]` each; None for frozen parameters."""
        rows, size, step = self.rows[:active], self.trainer.batch_size, len(self.rates)
        shapes = [self.parameters[place].shape[1:] for place in self.places]
        total = torch.zeros(active, sum(shape.numel() for shape in shapes), dtype=torch.float64)
        logs = [Logs() for _ in rows]
        drawn = [self.private.chunks(self.private.batch(row.problem, size, step)) for row in rows]
        for parts in zip_longest(*drawn):
            present = [index for index, part in enumerate(parts) if part is not None]
            total[present] += self._clipped_sums(present, [parts[index] for index in present], logs).cpu()
        for index, row in enumerate(rows):
            total[index] += self.private.noise(row.problem, total.shape[1], step)
            total[index] /= min(size, max(1, len(row.problem.indices)))
            if logs[index].count:
                loss, logged = logs[index].means()
                row.losses.append((loss, float(logs[index].count)))
                for name, reduce, value in logged:
                    row.reduce[name] = reduce
                    row.logged.setdefault(name, []).append((value, float(logs[index].count)))
        found: list[Tensor | None] = [None] * len(self.parameters)
        parts = torch.split(total, [shape.numel() for shape in shapes], dim=1)
        for place, part in zip(self.places, parts, strict=True):
            like = self.parameters[place]
            found[place] = part.reshape(active, *like.shape[1:]).to(like.device, like.dtype)
        return found

    def _clipped_sums(self, present: Sequence[int], indices: Sequence[np.ndarray], logs: Sequence[Logs]) -> Tensor:
        """The clipped sums of some rows' samples, float64 `[len(present), ...]`."""
        counts = [len(part) for part in indices]
        rows = self.private.rows(max(counts), self.trainer.batch_size)
        batches = []
        for index, part in zip(present, indices, strict=True):
            (batch,) = self.rows[index].problem.source.batches(part, len(part))
            batch = to_device(self.module, padded(batch, len(part), rows), self.device)
            check_separable(self.model, batch, len(part), labels_at(self.rows[index].problem, part))
            batches.append(batch)
        leaves = pytree.tree_leaves(pytree.tree_map(lambda *parts: torch.stack(parts), *batches))
        places = torch.arange(rows, device=self.device)
        weights = torch.stack([(places < count).to(torch.float32) for count in counts])
        own = [*self.places, *(place for place in range(len(self.parameters)) if place in self.frozen)]
        tensors = [*(self.parameters[place][list(present)] for place in own), *self.buffers]
        context = self.trainer.autocast(self.device)
        function = ClippedSum(self.module, self.model.layout, self.places, self.private, batches[0], lambda: context)
        dims = ([0] * len(own) + [None] * len(self.buffers), 0, 0)
        call = torch.vmap(function, in_dims=dims, randomness="different")
        with attached(self.module, Watched()):  # type: ignore[arg-type]
            values = vmapped(call, tensors, leaves, weights)
            kept = 1 + len(function.logged)
            total = torch.cat(values[kept:], dim=1)
            if not total.isfinite().all():
                function.leaves_out = True
                total = torch.cat(vmapped(call, tensors, leaves, weights)[kept:], dim=1)
        for place, (index, count) in enumerate(zip(present, counts, strict=True)):
            logs[index].add(function.logged, [value[place] for value in values[:kept]], count)
        return total.detach().double()
