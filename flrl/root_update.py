"""What the server trains itself: the update of its root samples, for aggregators; and what a strategy has it train."""

import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flrl.errors import ClientError
from flrl.seeding import SERVER, clients_in_turn
from flrl.strategies.running import train_clients, train_server
from flrl.trainers import LocalProblem
from flrl.types import Broadcast, ClientTask, ServerState, Tensors

if TYPE_CHECKING:
    from flrl.worker import Worker


def root_update(worker: "Worker", broadcast: Broadcast) -> Tensors:
    """Train on the root samples as a client would: same start, engine and settings, random numbers of the server's own.

    The server sends nothing, so no transform is applied, and it remembers nothing from round to round.

    Args:
        worker: the controller's own.
        broadcast: what the server sent to the clients of the round.

    Returns:
        The update's vectors, float64 on the CPU, by name.

    Raises:
        ClientError: the training raised, or its result is not finite.
    """
    indices, sent = worker.data.train_indices(SERVER), worker.on_device(broadcast)
    task = ClientTask(broadcast.round, SERVER, len(indices), worker.strategy.weight(len(indices)))
    problem = LocalProblem.of(worker.model, worker.data.splits.train, indices, task, sent, worker.seed)
    where = f"the server's root samples, round {broadcast.round}"
    try:
        (update,) = train_clients(worker.strategy, [problem], worker.trainer)
    except Exception as error:
        message = f"{where}: {type(error).__name__}: {error}"
        raise ClientError(message, client_id=None, traceback=traceback.format_exc()) from error
    vectors = {name: vector.cpu().double() for name, vector in update.vectors.items()}
    for name, vector in vectors.items():
        if not vector.isfinite().all():
            raise ClientError(f"{where}: {name} is not finite", client_id=None, traceback="")
    return vectors


def server_update(worker: "Worker", state: ServerState) -> ServerState:
    """Run `Strategy.server` on the public samples, with the clients' engine and settings and its own random numbers.

    Args:
        worker: the controller's own.
        state: what `Strategy.aggregate` has made in the round `state.round`.

    Returns:
        The next state, its tensors on the CPU.

    Raises:
        ClientError: the training raised, or the model that it returned is not finite.
    """
    public, device = worker.data.splits.public, worker.model.local.device
    num_samples = 0 if public is None else len(public)
    task = ClientTask(state.round, SERVER, num_samples, float(num_samples))
    sent = worker.on_device(Broadcast(state.round, state.vector, task.weight, state.variables))
    source = worker.data.splits.train if public is None else public
    problem = LocalProblem.of(worker.model, source, np.arange(num_samples), task, sent, worker.seed, public)
    here = replace(state, vector=sent.vector, variables=sent.variables)
    where = f"the server's own training, round {state.round}"
    try:
        with clients_in_turn(device):
            after = train_server(worker.strategy, here, problem, worker.trainer)
    except Exception as error:
        message = f"{where}: {type(error).__name__}: {error}"
        raise ClientError(message, client_id=None, traceback=traceback.format_exc()) from error
    variables = {name: tensor.cpu() for name, tensor in after.variables.items()}
    after = replace(after, vector=after.vector.cpu(), variables=variables)
    for name, tensor in {"the model": after.vector, **variables}.items():
        if not tensor.isfinite().all():
            raise ClientError(f"{where}: {name} is not finite", client_id=None, traceback="")
    return after
