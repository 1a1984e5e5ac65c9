"""The base class of federated algorithms.

A strategy holds settings only. What changes from round to round is in `ServerState`, an argument and result of methods.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries import Threat
from flrl.aggregation import Aggregator, Mean
from flrl.callbacks.base import Callbacks
from flrl.devices import Fleet
from flrl.layout import BATCHNORM, ParameterLayout, batchnorm_layers
from flrl.lightning.local_step import LocalStep, layer_of
from flrl.rounds import Rounds
from flrl.sampling import Sampler, draw, reweighed
from flrl.scheduling import Schedule, Synchronous
from flrl.seeding import SERVER, isolated_randomness, seed_for
from flrl.setup import Setup
from flrl.strategies.bounding import asked_what_to_send
from flrl.strategies.checking import belongs_to_rounds, check_cohort, check_cohorts
from flrl.strategies.workload import Workload
from flrl.trainers import LocalProblem, Trained
from flrl.transforms import Transform
from flrl.transforms.apply import checked, on_broadcast
from flrl.types import Aggregate, Broadcast, ClientTask, ClientUpdate, RoundRecord, ServerState, Tensors

if TYPE_CHECKING:
    from flrl.backends.base import Backend

Local = Generator[LocalProblem, Trained, ClientUpdate]
"""A client's part of a round: a generator that yields problems, is sent the trained results, returns the update."""
OnServer = Generator[LocalProblem, Trained, ServerState]
"""What the server trains itself at the end of a round: likewise a generator, which returns the next state."""


class Strategy(Workload, ABC):
    """An algorithm for federated learning.

    Args:
        rounds: number of rounds of a whole run.
        sampler: chooses each round's cohort.
        schedule: when the server steps, and on whose updates; synchronous rounds by default.
        aggregator: the rule that aggregates updates; the exact weighted mean by default.
        transforms: applied to updates between clients and server, by name, in order.
        personal: patterns of the names of parameters and buffers that stay with their client.
        batchnorm: "average": parameters and statistics of BatchNorm layers are averaged as all others are; "personal":
            they stay with their client; "frozen": the statistics stay what they are in the initial model, and layers
            normalise by them while they train, too.
        min_clients: smallest number of accepted updates that a round with a cohort is aggregated from.

    Raises:
        ValueError: a setting is invalid.
    """

    observes: Sequence[str] = ()
    """Names of the module's layers whose outputs `adjust_loss` needs."""
    evaluates: Sequence[str] = ()
    """Names in client memory that `personal_model` and `finetuning` need, besides the personal part."""
    accumulates = False
    """Whether the server sums up, over rounds, what clients send by their share of all weights, `Aggregate.share`."""
    pools_samples = False
    """Whether one client trains on the samples of others too, which a dedicated server cannot have it do."""
    beyond_means = ""
    """Why the server needs more of clients than means, so that differential privacy is refused; empty if not."""
    reads_samples = False  # whether `local` uses losses, gradients or outputs of samples besides the steps
    sends_model = True
    """Whether clients are sent the global model, and send updates of it. Where they are not, each has a model of its
    own, all of it personal, and `model.kinds` may give clients different networks."""

    def __init__(
        self,
        *,
        rounds: int,
        sampler: Sampler,
        schedule: Schedule | None = None,
        aggregator: Aggregator | None = None,
        transforms: Mapping[str, Transform] | None = None,
        personal: Sequence[str] = (),
        batchnorm: Literal["average", "personal", "frozen"] = "average",
        min_clients: int = 1,
    ) -> None:
        for name, value in (("rounds", rounds), ("min_clients", min_clients)):
            if value < 1:
                raise ValueError(f"strategy.{name}={value}: must be at least 1")
        if isinstance(personal, str):
            raise ValueError(f"strategy.personal={personal}: must be a list of patterns, such as [head.*]")
        self.rounds = rounds
        self.sampler = sampler
        self.schedule = Synchronous() if schedule is None else schedule
        self.aggregator = Mean() if aggregator is None else aggregator
        self.transforms = checked(transforms)
        if batchnorm not in ("average", "personal", "frozen"):
            raise ValueError(f"strategy.batchnorm={batchnorm!r}: must be 'average', 'personal' or 'frozen'")
        self.personal = (*personal, *([BATCHNORM] if batchnorm == "personal" else []))
        self.batchnorm = batchnorm
        self.min_clients = min_clients

    def check(self, setup: Setup) -> None:
        """Raise ValueError that names a part of the setup that the algorithm does not support; before any round."""
        check_cohorts(self, setup)
        for name in self.observes:
            layer_of(setup.module, name)
        if self.batchnorm == "frozen" and not batchnorm_layers(setup.module):
            raise ValueError(f"strategy.batchnorm=frozen: {type(setup.module).__name__} has no BatchNorm layer")

    def fit(
        self,
        state: ServerState,
        *,
        backend: "Backend",
        layout: ParameterLayout,
        seed: int,
        callbacks: Callbacks,
        sampling_seed: int | None = None,
        history: Sequence[RoundRecord] = (),
        threat: Threat | None = None,
        fleet: Fleet | None = None,
    ) -> tuple[ServerState, list[RoundRecord]]:
        """Run the rounds that are left: see `flrl.rounds`.

        Args:
            state: from `initialize`, or from a checkpoint.
            backend: where clients train.
            layout: the model's layout.
            seed: the run's seed.
            callbacks: called in every round.
            sampling_seed: seed of the cohorts; the run's seed by default.
            history: the records of the rounds before `state`.
            threat: which clients are malicious, and what they do; nobody by default.
            fleet: the clients' devices; None if there is no virtual clock.

        Returns the last state, and a record of every round; raises what `flrl.rounds.Rounds.run` does.
        """
        sampling, threat = seed if sampling_seed is None else sampling_seed, threat or Threat()
        return Rounds(self, backend, layout, callbacks, seed, sampling, threat, fleet).run(state, history)

    # The server's part.

    def initialize(self, vector: Tensor, layout: ParameterLayout) -> ServerState:
        """The state before the first round, from the initial model."""
        return ServerState(round=0, vector=vector)

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """What the server sends to every client of the round; `total_weight` is the sum of the cohort's weights."""
        return Broadcast(round=round, vector=state.vector, total_weight=total_weight)

    @abstractmethod
    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """The next state, from a round's aggregate; the round loop updates `round` and `memory`."""

    def server(self, state: ServerState, problem: LocalProblem) -> OnServer:
        """What the server trains itself after `aggregate`, in the controller's process: a generator like `local`.

        Args:
            state: from `aggregate`.
            problem: starts from the global model, on all public samples; its task is that of the server.
        """
        yield problem
        return state

    @property
    def trains_on_server(self) -> bool:
        """Whether the class overrides `server`; if not, it is never called."""
        return type(self).server is not Strategy.server

    def weight(self, num_samples: int) -> float:
        """A client's weight in the mean: its number of samples, as in McMahan et al."""
        return float(num_samples)

    def weight_of_all(self, sizes: np.ndarray) -> float:
        """The sum of all clients' weights; `sizes` are their training samples, int64 `[num_clients]`."""
        numbers, counts = np.unique(sizes, return_counts=True)
        return math.fsum(self.weight(int(n)) * int(count) for n, count in zip(numbers, counts, strict=True))

    @property
    def needs_rounds(self) -> bool:
        """Whether clients need what belongs to a whole round, so that all must start from the same one."""
        return belongs_to_rounds(self, Strategy)

    def task(self, state: ServerState, round: int, client_id: int, num_samples: int) -> ClientTask:
        """The task of a client that starts from the model of a round; the state has the client's memory."""
        return ClientTask(round, client_id, num_samples, self.weight(num_samples), state.memory.get(client_id, {}))

    def plan(
        self,
        state: ServerState,
        sizes: np.ndarray,
        seed: int,
        layout: ParameterLayout,
        available: np.ndarray | None = None,
    ) -> tuple[Broadcast, list[ClientTask]]:
        """The broadcast of the next round, and its clients' tasks.

        Args:
            state: the server's state before the round.
            sizes: training samples of every client, int64 `[num_clients]`.
            seed: seed of the cohorts.
            layout: the model's layout.
            available: whether each client may be drawn, bool `[num_clients]`; None: all may.
        """
        round = state.round + 1
        with isolated_randomness(seed_for(seed, round, SERVER, "plan"), torch.device("cpu")):
            drawn = draw(self.sampler, state.variables, sizes, seed=seed, round=round, available=available)
            cohort = check_cohort(self.sampler, drawn, len(sizes))
            sent = self._planned(state, round, cohort, sizes, layout)
        whole, tasks = reweighed(self.sampler, *sent, state.variables, sizes, seed=seed, available=available)
        return on_broadcast(self.transforms, whole, state.variables, layout, seed), tasks

    def _planned(
        self, state: ServerState, round: int, cohort: Sequence[int], sizes: np.ndarray, layout: ParameterLayout
    ) -> tuple[Broadcast, list[ClientTask]]:
        tasks = [self.task(state, round, client, int(sizes[client])) for client in cohort]
        sent = asked_what_to_send(self, state, round, sum(task.weight for task in tasks), len(sizes))
        if not self.sends_model:
            sent = replace(sent, vector=sent.vector[:0])
        payload = {"vector": layout.nbytes * self.sends_model} | {n: t.nbytes for n, t in sent.variables.items()}
        return replace(sent, cohort=tuple(sorted(cohort)), payload=payload | dict(sent.payload)), tasks

    # The client's part.

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """The vectors in every update: number of elements by name."""
        return {"update": layout.size if self.sends_model else 0}

    def local(self, problem: LocalProblem) -> Local:
        """One client's part of a round, a generator.

        It yields problems to train, one or several in turn, is sent a `Trained` for each, and returns the update. The
        generators of a client batch run at the same time, and an engine may train their problems at once.

        Example:
            `trained = yield replace(problem, epochs=3)`, then `return trained.update(problem)`.
        """
        trained = yield problem
        return trained.update(problem)

    # The client's models that are evaluated beside the global one.

    def personal_model(self, problem: LocalProblem) -> Tensor | None:
        """The client's own model, a local vector `[layout.local_size]`, or None if it has none.

        It is evaluated on the client's held-out samples as `clients/personal/...`. By default it is the global model
        with the client's personal part, where there are personal parameters.

        Args:
            problem: the client's, after a round: `start` is the global model with the personal part, `broadcast` what
                the server would send next; of the client's memory there is what `evaluates` names.
        """
        return problem.start if problem.model.layout.personal else None

    def finetuning(self, problem: LocalProblem) -> LocalProblem:
        """What is trained for `clients/finetuned/...`: all parameters, from the personal, else the global model.

        Args:
            problem: as for `personal_model`, with `evaluation.finetune_steps` as `steps`. It is trained with the
                trainer's settings and the module's own loss, without `adjust_loss` and `adjust_gradient`.
        """
        own = self.personal_model(problem)
        return problem if own is None else replace(problem, start=own)

    @property
    def adjusts_loss(self) -> bool:
        """Whether the class overrides `adjust_loss`."""
        return type(self).adjust_loss is not Strategy.adjust_loss

    @property
    def adjusts_gradient(self) -> bool:
        """Whether the class overrides `adjust_gradient`."""
        return type(self).adjust_gradient is not Strategy.adjust_gradient

    def adjust_loss(self, loss: Tensor, step: LocalStep) -> Tensor:
        """The loss to minimise on a batch, from the module's own.

        Engines record it together with the training step and replay both, for many clients at once too: it must consist
        of tensor operations on the loss and on the attributes and outputs of `step`.

        Args:
            loss: the module's loss, a scalar.
            step: the batch, values and observed outputs of this step.
        """
        return loss

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Change a batch's gradient in place, elementwise.

        Args:
            gradient: shape `[layout.num_trainable]`, or `[clients, layout.num_trainable]` for a client batch.
            parameters: the trainable parameters, same shape.
            values: `LocalProblem.values`; for a client batch with a first dimension for the clients, of length 1 where
                all have the same value.
        """
