"""Many clients at once: their models are rows of a matrix, and one step of `torch.func.vmap` trains all of them.

It pays for models so small that calls take longer than arithmetic, and on a GPU. Each client's steps are those of the
eager engine up to rounding, however many clients share a step.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from flrl.bound_model import BoundModel
from flrl.data.sources import Source, TensorSource
from flrl.layout import ParameterLayout
from flrl.lightning.hooks import overridden
from flrl.lightning.optimizers import parse_optimizers
from flrl.lightning.stand_in import TrainerStandIn, attached, configure
from flrl.lightning.transfer import TRANSFER_HOOKS
from flrl.seeding import isolated_randomness
from flrl.setup import Setup
from flrl.snapshot import Snapshot
from flrl.trainers.base import MOST_MODELS
from flrl.trainers.client_batch import ClientBatch
from flrl.trainers.eager import EagerTrainer
from flrl.trainers.private.clients import PrivateClientBatch
from flrl.trainers.problem import ClientHooks, LocalProblem, Trained
from flrl.trainers.steps.capturing import NotCapturableError
from flrl.trainers.steps.record import Adjustment, Shape, Watched
from flrl.trainers.steps.safety import optimizer_is_watched, refuse_hooks
from flrl.trainers.steps.stacked import StackedStep

ELEMENTWISE = ("SGD", "Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")
"""Optimizers of torch that step each number by itself, so that they can step many models as one."""
_BATCH_BYTES = {"cpu": 2**24, "cuda": 2**30}
_MOST = 128


class VectorizedTrainer(EagerTrainer):
    """Trains a client batch of up to `width` clients at once.

    The last bits of a step may depend on how many clients share it: the division of a cohort into client batches does
    not depend on the workers.

    Args:
        width: clients in a batch; null divides the cohort into 2, 4, 6, ... equal batches, the fewest that have
            parameters of no more than 16 MiB each (1 GiB on a GPU) and no more than 128 clients.
        options: as for `flrl.trainers.base.Trainer`, without `keep_optimizer_state`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, width: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if width is not None and width < 1:
            raise ValueError(f"trainer.width={width}: must be at least 1, or null")
        if self.keep_optimizer_state:
            raise ValueError("trainer=vectorized does not keep optimizer states: use trainer=traced")
        if self.memory_format != "contiguous":
            raise ValueError("trainer=vectorized has images of many clients at once: trainer.memory_format=contiguous")
        self.width = width
        self._steps: dict[pl.LightningModule, dict[Any, StackedStep]] = {}  # of each kind of client

    def check(self, setup: Setup) -> None:
        """Refuse what the eager engine refuses, and modules and optimizers that cannot step many models as one.

        Raises:
            ValueError: the module or its optimizer is refused.
        """
        super().check(setup)
        module = setup.module
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
        """The size of client batches: `width`, or what it stands for."""
        if self.width is not None:
            return self.width
        room = _BATCH_BYTES.get(model.local.device.type, 2**24)
        most = max(1, min(_MOST, room // max(1, model.local.nbytes)))
        pairs = max(1, ceil(cohort / (2 * most)))
        return max(1, ceil(cohort / (2 * pairs)))

    def fit(self, problem: LocalProblem, hooks: ClientHooks) -> Trained:
        """Train one client, as a client batch of its own; raises as `fit_batch` does."""
        return self.fit_batch([problem], hooks)[0]

    def fit_batch(self, problems: Sequence[LocalProblem], hooks: ClientHooks) -> list[Trained]:
        """Train the clients at once; returns their results in the order of the problems.

        Raises:
            ValueError: the samples are not in memory, or the step cannot be taken for many models as one.
        """
        if problems[0].only_gradient:
            return super().fit_batch(problems, hooks)
        if not all(isinstance(problem.source, TensorSource) for problem in problems):
            raise ValueError("trainer=vectorized needs samples in memory (TensorSource): use trainer=traced")
        batch = ClientBatch if self.private is None else PrivateClientBatch
        found = {problem.task.client_id: trained for problem, trained in batch(self, problems, hooks).train()}
        return [found[problem.task.client_id] for problem in problems]

    def groups(self, problems: Sequence[LocalProblem]) -> list[list[LocalProblem]]:
        """Divide the problems into groups that can share steps.

        Those of a group train the same parameters of one model, on samples of one form; with schedulers, or an
        optimizer that reads the Trainer, they have equally many batches.
        """
        depends = {module: _depends_on_batches(module) for module in {problem.module for problem in problems}}
        groups: dict[Any, list[LocalProblem]] = {}
        for problem in problems:
            batches = (self.num_epochs(problem), self.num_batches(problem)) if depends[problem.module] else ()
            form = _form(problem.source)
            key = (problem.model, form, batches, problem.trainable, problem.only_gradient, tuple(problem.values))
            groups.setdefault(key, []).append(problem)
        return list(groups.values())

    def step(
        self, model: BoundModel, rows: int, batch: Any, shape: Shape | None, adjustment: Adjustment | None
    ) -> StackedStep:
        """The recorded step for that many rows and a shape of batches, recorded at the first call.

        Raises:
            ValueError: it cannot be recorded.
        """
        if model.module not in self._steps and len(self._steps) >= MOST_MODELS:
            self._steps.clear()
        steps = self._steps.setdefault(model.module, {})  # type: ignore[arg-type]
        key = (rows, shape, None if adjustment is None else adjustment.key)
        if key not in steps:
            with isolated_randomness(0, model.local.device):
                steps[key] = StackedStep.of(self, model, batch, adjustment)
        return steps[key]


def _depends_on_batches(module: pl.LightningModule) -> bool:
    """Whether a step may depend on how many batches a client has: there are schedulers, or the optimizer reads it."""
    try:
        with attached(module, Watched()):  # type: ignore[arg-type]
            return bool(parse_optimizers(module.configure_optimizers())[1])
    except NotCapturableError:
        return True


def _form(source: Source) -> Any:
    """What batches have to agree in to be stacked, besides their number of samples."""
    if not isinstance(source, TensorSource):
        return ()
    return (source.inputs.dtype, source.inputs.shape[1:], source.targets.dtype, source.targets.shape[1:])
