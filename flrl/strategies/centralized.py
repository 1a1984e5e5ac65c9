"""Centralized training, a baseline: one client that has all clients' samples takes as many steps as a cohort.

A round draws the cohort that federated training would draw, and trains one model, with the trainer's settings, on as
many samples of all clients' as each client of the cohort has, one after another: they are consecutive parts of an order
of all training samples that is drawn for the round. With everybody in the cohort a round is a pass over the union.
Samples are sent, once and before; of a model nothing is, so no bytes are counted. With a dedicated server it is
refused: there samples stay with their clients.
"""

from dataclasses import replace

import numpy as np
import torch

from flrl.layout import ParameterLayout
from flrl.seeding import EVERYBODY, generator_for
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Broadcast, ClientTask, ServerState


class Centralized(FedAvg):
    """FedAvg with one client, `flrl.seeding.EVERYBODY`, who has the samples of all that take part.

    The steps are those of the cohort's clients together: as many epochs or steps on a part as on a client's samples,
    each part with a fresh optimizer unless `trainer.keep_optimizer_state`. Arguments as for `FedAvg`.
    """

    pools_samples = True

    def plan(
        self,
        state: ServerState,
        sizes: np.ndarray,
        seed: int,
        layout: ParameterLayout,
        available: np.ndarray | None = None,
    ) -> tuple[Broadcast, list[ClientTask]]:
        """The task of the one client, who is sent the sizes of the clients that would have taken part."""
        sent, tasks = super().plan(state, sizes, seed, layout, available)
        parts = torch.tensor([int(sizes[client_id]) for client_id in sent.cohort])
        number = int(sizes.sum())
        memory = state.memory.get(EVERYBODY, {})
        task = ClientTask(sent.round, EVERYBODY, number, self.weight(number), memory)
        nothing = dict.fromkeys(sent.payload, 0)
        sent = replace(sent, cohort=(EVERYBODY,), total_weight=task.weight, payload=nothing, variables={"sizes": parts})
        return sent, [task] if tasks else []

    def local(self, problem: LocalProblem) -> Local:
        """Train on one part after another."""
        rng = generator_for(problem.seed, problem.task.round, EVERYBODY, "centralized")
        ends = np.cumsum(problem.broadcast.variables["sizes"].cpu().numpy())
        parts = [part for part in np.split(rng.permutation(problem.indices), ends)[: len(ends)] if len(part)]
        asked, steps, metrics = problem, 0, []
        for part in parts:
            trained = yield replace(asked, indices=part, position=0)
            asked = trained.next(problem)
            steps += trained.num_steps
            metrics.append(trained.metrics)
        weights = [len(part) for part in parts]
        means = {name: float(np.average([row[name] for row in metrics], weights=weights)) for name in metrics[-1]}
        return replace(trained.update(problem), num_steps=steps, metrics=means, payload={"update": 0})
