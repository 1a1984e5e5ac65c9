"""Whether a training step's loss is a sum or a mean over samples, as far as one batch can tell."""

import weakref
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from flrl.bound_model import BoundModel
from flrl.lightning.modes import evaluating
from flrl.lightning.steps import loss_of, replaced, step_caller
from flrl.seeding import isolated_randomness
from flrl.snapshot import Snapshot
from flrl.trainers.problem import LocalProblem

_checked: "weakref.WeakKeyDictionary[BoundModel, set[int]]" = weakref.WeakKeyDictionary()
"""The models whose step has been checked in this process, with the classes of the samples it has been checked on."""
_DIFFERENCE = 1e-3
_SAMPLES = 8


def check_separable(model: BoundModel, batch: Any, count: int, labels: np.ndarray | None = None) -> None:
    """Raise ValueError unless the gradient of a batch is the mean, or the sum, of those of its samples.

    A model is checked in each process on the first samples, and on some of every class when it first occurs, as a loss
    may weigh classes; in full precision, with dropout off. A step that draws random numbers even so is not checked.
    Whatever the step, single samples' gradients are clipped: what is at stake is that they are those of its loss.

    Args:
        model: the model.
        batch: the first rows are samples.
        count: number of samples.
        labels: their classes, `[count]`; None if samples have none.
    """
    known = [] if labels is None else labels[:count].tolist()
    if count < 2 or (model in _checked and _checked[model].issuperset(known)):
        return
    seen = _checked.get(model, set())
    first = {kind: place for place, kind in reversed([*enumerate(known)]) if kind not in seen}
    rows = [*sorted(first.values()), *(place for place in range(count) if place not in first.values())][:_SAMPLES]
    count = len(rows)
    whole = pytree.tree_map(lambda leaf: leaf[rows], batch)
    one = [pytree.tree_map(lambda leaf, n=n: leaf[n : n + 1], whole) for n in range(count)]
    with isolated_randomness(0, model.local.device), evaluating(model.module):
        found = [_gradient(model, whole, seed) for seed in (0, 1)]
        singles = [_gradient(model, sample, 0) for sample in one]
    total = torch.stack(singles).sum(dim=0)
    limit = _DIFFERENCE * float(found[0].norm()) + 1e-6
    repeated = torch.equal(*found) and bool(found[0].isfinite().all())
    if repeated and all(float((found[0] - each).norm()) > limit for each in (total, total / count)):
        raise ValueError(
            f"trainer.private: the loss of {type(model.module).__name__}.training_step is neither the mean nor the sum "
            "of its samples' losses: samples of a batch depend on each other, which private training cannot have"
        )
    _checked[model] = seen | {known[place] for place in rows if known}


def labels_at(problem: LocalProblem, indices: np.ndarray) -> np.ndarray | None:
    """The classes of some of a client's samples; None if they have none."""
    labels = problem.source.labels
    return None if labels is None else labels[indices]


def _gradient(model: BoundModel, batch: Any, seed: int) -> Tensor:
    """The gradient of the module's own loss on a batch, as one vector, float64."""
    module: pl.LightningModule = model.module  # type: ignore[assignment]
    torch.manual_seed(seed)
    live = [*model.trainable(), *module.buffers()]
    before, kept = Snapshot(module, "module", spared=live), [tensor.detach().clone() for tensor in live]
    logging = replaced(module, log=_nothing, log_dict=_nothing)
    with torch.enable_grad(), logging:
        loss = loss_of(step_caller(module.training_step)(batch, 0))
        if loss is None:
            raise ValueError("trainer.private: training_step returned None; every sample needs a loss")
        found = torch.autograd.grad(loss, model.trainable(), allow_unused=True)
    with torch.no_grad():
        for tensor, value in zip(live, kept, strict=True):
            tensor.copy_(value)
    before.restore()
    pairs = zip(found, model.trainable(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1).double() for g, p in pairs])


def _nothing(*args: Any, **options: Any) -> None:
    pass
