"""Private steps with their clipped sums recorded once for each size of batches and replayed, with the same bits."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from flrl.lightning.stand_in import attached
from flrl.seeding import isolated_randomness
from flrl.trainers.private.clipped_sum import ClippedSum
from flrl.trainers.private.loop import PrivateLoop, Sum
from flrl.trainers.steps.capturing import NotCapturableError, unchanged
from flrl.trainers.steps.graphs import runnable, simplify
from flrl.trainers.steps.record import Shape, Unused, Watched
from flrl.trainers.steps.replay import WORTH_RECORDING

if TYPE_CHECKING:
    from flrl.trainers.traced import TracedTrainer

_MOST_SHAPES = 64


class PrivateRecordings:
    """The clipped sums of one model that have been recorded so far.

    Attributes:
        counts: how many batches of each shape there were.
        recorded: function and recording of each shape.
        closed: the module's steps cannot be recorded.
    """

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        self.recorded: dict[Any, tuple[ClippedSum, Sum]] = {}
        self.closed = False


class RecordedPrivateLoop(PrivateLoop):
    """The private loop with recordings; the first arguments are the recordings of the model, the others as there."""

    def __init__(self, recordings: PrivateRecordings, trainer: "TracedTrainer", *rest: Any) -> None:
        super().__init__(trainer, *rest)
        self.recordings, self.warn_once = recordings, trainer.warn_once

    def function(self, batch: Any, batch_idx: int) -> tuple[ClippedSum, Sum]:
        """The clipped sum for batches like this, and its recording, where there is one or it is worth one."""
        known, shape = self.recordings, Shape.of(batch)[0]
        key = (shape, tuple(self.places))
        if key in known.recorded:
            function, replay = known.recorded[key]
            function.batch_idx = batch_idx
            return function, replay
        known.counts[key] = known.counts.get(key, 0) + 1
        soon = known.counts[key] < WORTH_RECORDING or len(known.recorded) >= _MOST_SHAPES
        if known.closed or soon:
            return super().function(batch, batch_idx)
        try:
            with isolated_randomness(0, self.device):
                known.recorded[key] = self._recorded(batch)
        except NotCapturableError as error:
            known.closed = True
            self.warn_once(self.module, str(error))
        return self.function(batch, batch_idx)

    def _recorded(self, batch: Any) -> tuple[ClippedSum, Sum]:
        function = self.clipped_sum(batch)
        function.batch_idx = Unused()
        tensors, leaves = self.tensors(), [leaf.clone() for leaf in pytree.tree_leaves(batch)]
        weights = torch.ones(len(leaves[0]), device=self.device)
        arguments = [tensors, leaves, weights]
        spared = [*self.parameters, *self.module.buffers()]
        with unchanged(self.module, spared), attached(self.module, Watched()):  # type: ignore[arg-type]
            graph = make_fx(function)(*arguments)
        simplify(graph)
        replay = _flattened(runnable(graph))
        self._compare(function, replay, arguments)
        return function, replay

    def _compare(self, function: ClippedSum, replay: Sum, arguments: list[Any]) -> None:
        """Raise NotCapturableError unless a replay has the bits of the function itself."""
        function.batch_idx = 0
        found = []
        for call in (function, replay):
            with isolated_randomness(1, self.device), torch.no_grad():
                found.append(call(*arguments))
        if not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
            raise NotCapturableError("a replay differs from the module")


def _flattened(call: Callable[..., Any]) -> Sum:
    """A recorded graph, which takes its tensors one by one, as a function of what was recorded."""

    def replay(tensors: Sequence[Tensor], leaves: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            values: tuple[Tensor, ...] = call(*tensors, *leaves, weights)
        return values

    return replay
