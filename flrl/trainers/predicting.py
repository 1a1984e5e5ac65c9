"""What a model predicts on samples, for strategies that exchange predictions."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flrl.data.retargeted import retargeted
from flrl.data.sources import Source
from flrl.lightning.modes import evaluating
from flrl.lightning.predicting import outputs_of
from flrl.lightning.stand_in import TrainerStandIn, attached, configure
from flrl.lightning.steps import loss_of, replaced, step_caller
from flrl.lightning.transfer import to_device
from flrl.seeding import isolated_randomness, seed_for, seeded_for_client
from flrl.trainers.problem import LocalProblem

BATCH_SIZE = 500
"""Samples of a batch; a fixed number, since the last bits depend on it."""


def predictions(
    problem: LocalProblem, vector: Tensor, source: Source | None = None, indices: np.ndarray | None = None
) -> Tensor:
    """The outputs of `problem.model` with another vector, in evaluation mode; for `Strategy.local` and `server`.

    Args:
        problem: of the client, or of the server.
        vector: the local vector, `[layout.local_size]`.
        source: the samples; the public ones by default.
        indices: which of them, int64 `[n]`; all by default.

    Returns:
        float32 `[n, classes]`: of the module's `predict_step` where it overrides that, else of the module itself,
        called with a batch's inputs.

    Raises:
        ValueError: the outputs are not one row of numbers a sample.
    """
    source = problem.public if source is None else source
    assert source is not None, "Strategy.check refuses a federation without public samples"
    model, module, task = problem.model, problem.module, problem.task
    indices = np.arange(len(source)) if indices is None else indices
    model.load(vector)
    seed = seed_for(problem.seed, task.round, task.client_id, "predictions")
    with seeded_for_client(seed, model.local.device), torch.no_grad(), evaluating(module):
        batches = source.batches(indices, BATCH_SIZE)
        found = [outputs_of(module, to_device(module, batch, model.local.device)) for batch in batches]
    model.touched = True
    outputs = torch.cat(found)
    if outputs.shape[:1] != (len(indices),) or outputs.ndim != 2 or not outputs.is_floating_point():
        raise ValueError(
            f"model: {type(module).__name__} gives {outputs.dtype} {list(outputs.shape)} for {len(indices)} samples: "
            "its forward, or predict_step, must give class scores, [batch, classes]"
        )
    return outputs.float()


def check_distillable(module: pl.LightningModule, source: Source, num_classes: int) -> None:
    """Refuse a module that gives no class scores, or cannot be trained on class probabilities; tried on two samples.

    Raises:
        ValueError: it is such a module.
    """
    name, device = type(module).__name__, next(module.parameters()).device
    indices = np.arange(min(2, len(source)))
    soft = retargeted(source, torch.full((len(source), num_classes), 1 / num_classes))
    batch, softened = (to_device(module, next(iter(s.batches(indices, 2))), device) for s in (source, soft))
    tried, stand_in = "predictions", TrainerStandIn(1, 1)
    quiet = replaced(module, log=_nothing, log_dict=_nothing)
    with isolated_randomness(0, device), torch.no_grad(), evaluating(module), quiet, attached(module, stand_in):
        configure(module, stand_in)  # only for modules that read their learning rate while they train
        try:
            shape = tuple(outputs_of(module, batch).shape)
            if shape != (len(indices), num_classes):
                raise ValueError(f"it gives {list(shape)} for {len(indices)} samples of {num_classes} classes")
            tried = "loss"
            loss = loss_of(step_caller(module.training_step)(softened, 0))
        except Exception as error:
            needs = "forward (or predict_step) must take a batch's inputs and give class scores"
            if tried == "loss":
                needs = "training_step must take class probabilities for classes, as cross-entropy does"
            raise ValueError(f"model: {name}'s {needs}; {type(error).__name__}: {error}") from error
    if loss is None or loss.ndim:
        raise ValueError(f"model: {name}.training_step gives no loss on class probabilities")


def _nothing(*args: Any, **options: Any) -> None:
    pass
