"""Rounds in which clients send gradients and the model stays, as strategies have them that need two exchanges."""

from dataclasses import replace

from flrl.lightning.optimizers import OPTIMIZER
from flrl.trainers import LocalProblem, Trained
from flrl.trainers.problem import POSITION
from flrl.types import ClientUpdate, Tensors


def gradient_update(problem: LocalProblem, gradient: Trained, memory: Tensors | None = None) -> ClientUpdate:
    """The update of an exchange of gradients: what is not one (buffers, personal parts, the trainer's memory) stays.

    Args:
        problem: the client's problem as `Strategy.local` got it.
        gradient: what came of it with `only_gradient`.
        memory: what the client remembers besides.
    """
    size = problem.num_trainable
    difference = gradient.difference.clone()
    difference[size:] = 0.0
    kept = {name: t for name, t in problem.task.memory.items() if name == POSITION or name.startswith(OPTIMIZER)}
    stays = replace(gradient, difference=difference, memory=kept)
    return stays.update(problem, memory=memory, payload={"update": size * problem.start.element_size()})
