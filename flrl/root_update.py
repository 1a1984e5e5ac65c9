"""The update of the server's root samples, which it trains itself, for aggregators that compare updates with it."""

import traceback
from typing import TYPE_CHECKING

from flrl.errors import ClientError
from flrl.seeding import SERVER
from flrl.strategies.running import train_clients
from flrl.trainers import LocalProblem
from flrl.types import Broadcast, ClientTask, Tensors

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
