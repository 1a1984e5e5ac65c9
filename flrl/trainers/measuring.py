"""What transforms measure at a client, on its samples and the model that it was sent."""

from collections.abc import Mapping

from flrl.lightning.logs import LogCollector
from flrl.lightning.modes import evaluating
from flrl.lightning.stand_in import TrainerStandIn, attached, configure
from flrl.lightning.steps import loss_of, replaced, step_caller
from flrl.lightning.transfer import to_device
from flrl.trainers.base import Trainer
from flrl.trainers.problem import LocalProblem, client_randomness
from flrl.transforms.base import AtClient, Transform
from flrl.types import Tensors


def measure(transforms: Mapping[str, Transform], problem: LocalProblem, trainer: Trainer) -> dict[str, Tensors]:
    """What each transform that overrides `measure` has computed at the client, by the transform's name.

    Args:
        transforms: the transforms by name.
        problem: the client's problem; the model is loaded with its start.
        trainer: gives batches.
    """
    measuring = {name: part for name, part in transforms.items() if type(part).measure is not Transform.measure}
    return {name: _measured(part, problem, trainer) for name, part in measuring.items()}


def _measured(transform: Transform, problem: LocalProblem, trainer: Trainer) -> Tensors:
    model, module = problem.model, problem.module
    trainer.load(problem)
    log = LogCollector()
    step = step_caller(module.training_step)
    stand_in = TrainerStandIn(1, trainer.num_batches(problem), engine=trainer.engine)
    source = getattr(problem.source, "unwatched", problem.source)  # a replay watches what is trained on
    sent = source.batches(problem.indices, trainer.batch_size)
    batches = (to_device(module, trainer.formatted(batch), model.local.device) for batch in sent)
    logging = replaced(module, log=log.log, log_dict=log.log_dict)
    with client_randomness(problem), logging, attached(module, stand_in):
        configure(module, stand_in)  # only for modules that read their learning rate while they train
        try:
            with evaluating(module):
                return transform.measure(AtClient(module, batches, lambda batch: loss_of(step(batch, 0))))
        finally:
            model.touched = True
