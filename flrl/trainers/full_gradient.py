"""The gradient of a client's whole local loss at a vector, batch by batch."""

from typing import TYPE_CHECKING

import torch

from flrl.lightning.logs import LogCollector
from flrl.lightning.stand_in import TrainerStandIn, attached, configure
from flrl.lightning.steps import loss_of, replaced, step_caller
from flrl.lightning.transfer import to_device
from flrl.trainers.problem import LocalProblem, Trained, client_randomness, trained

if TYPE_CHECKING:
    from flrl.trainers.base import Trainer


def full_gradient(problem: LocalProblem, trainer: "Trainer") -> Trained:
    """Minus the gradient of the mean loss over all samples of the client at `problem.start`, as its difference.

    If no parameter is trainable there is no backward pass: the difference is zero, and what counts is `train/loss`.

    Batches only bound the memory: each batch's mean loss is weighted by its share of the samples. For buffers that the
    forward pass changes (BatchNorm's statistics), the difference is their change.

    Args:
        problem: the client's problem; its numbers of epochs and steps are ignored.
        trainer: gives batches and precision.

    Raises:
        ValueError: `training_step` skipped a batch, so there is no whole loss.
    """
    model, module = problem.model, problem.module
    trainer.load(problem)
    log = LogCollector()
    call = step_caller(module.training_step)
    num_samples = len(problem.indices)
    stand_in = TrainerStandIn(1, trainer.num_batches(problem), engine=trainer.engine)
    logging = replaced(module, log=log.log, log_dict=log.log_dict)
    with client_randomness(problem), logging, attached(module, stand_in):
        configure(module, stand_in)  # only for modules that read their learning rate while they train
        for batch_idx, (batch, size) in enumerate(trainer.whole(problem)):
            log.batch_size = size
            batch = to_device(module, batch, model.local.device)
            with trainer.autocast(model.local.device):
                loss = loss_of(call(batch, batch_idx))
            if loss is None:
                raise ValueError("the full gradient needs a loss for every batch, training_step returned None")
            log.add_loss(loss)
            if problem.trainable is None or problem.trainable:
                (loss * (size / num_samples)).backward()  # type: ignore[no-untyped-call]
        log.end_epoch(reset=True)
    result = trained(problem, model.read(), metrics=log.result(), num_steps=1)
    for entry, parameter in zip(model.layout.trained, model.trainable(), strict=True):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        result.difference[entry.slice] = -gradient.detach().reshape(-1).double()
    return result
