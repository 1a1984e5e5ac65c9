"""The gradient of a client's whole local loss at the global model, batch by batch: the client half of FedSGD."""

from flrl.trainers.base import LocalProblem, Trainer, client_randomness, to_device, update_of
from flrl.trainers.modules import LogCollector, loss_of, replaced, step_caller
from flrl.trainers.stand_in import TrainerStandIn, attached, configure
from flrl.types import ClientUpdate


def full_gradient(problem: LocalProblem, trainer: Trainer) -> ClientUpdate:
    """Minus the gradient of the mean loss over all samples of the client, as its update.

    Batches only bound the memory: each batch's mean loss enters with its share of the samples. Buffers that the forward
    pass changes (BatchNorm's statistics) are in the update as their difference.

    Args:
        problem: the client.
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
        configure(module, stand_in)  # only for modules that look at their learning rate while they train
        for batch_idx, (batch, size) in enumerate(trainer.batches(problem, 0)):
            log.batch_size = size
            batch = to_device(module, batch, model.vector.device)
            with trainer.autocast(model.vector.device):
                loss = loss_of(call(batch, batch_idx))
            if loss is None:
                raise ValueError("the full gradient needs a loss for every batch, training_step returned None")
            log.add_loss(loss)
            (loss * (size / num_samples)).backward()  # type: ignore[no-untyped-call]
        log.end_epoch(reset=True)
    update = update_of(problem, metrics=log.result(), num_steps=1)
    for entry, parameter in zip(model.layout.entries, model.trainable(), strict=False):
        if parameter.grad is not None:
            update.vectors["update"][entry.slice] = -parameter.grad.detach().reshape(-1).double()
    return update
