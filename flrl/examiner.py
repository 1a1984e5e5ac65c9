"""Evaluation as a worker does it on every backend: what is due after a round, a share of it, and all shares joined.

A metric's name says which model is meant. `test/...`: the global one, on the central test set. On clients' held-out
samples, `clients/global/...`: the global one; `clients/personal/...`: the client's own, if the strategy gives it one;
`clients/finetuned/...`: that after some local steps. Clients that never train are in `held_out_clients/...`.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from flrl.adversaries.base import Probe
from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.errors import ClientError
from flrl.evaluation import Evaluator, summarize_clients
from flrl.lightning.logs import Logged, joined
from flrl.seeding import SERVER, isolated_randomness, seed_for
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.problem import PERSONAL, NoHooks
from flrl.trainers.sharing import outside_of
from flrl.types import Broadcast, ClientTask, ServerState, Tensors

if TYPE_CHECKING:
    from flrl.strategies import Strategy

MODELS = ("global", "personal", "finetuned")
"""The models that are evaluated on clients' samples, by name."""
Rows = Mapping[str, Mapping[str, float]]
"""A client's metrics, by the model that they are of."""


@dataclass(frozen=True, slots=True)
class EvaluationShare:
    """What is to be evaluated: batches of the central test set; clients, on their held-out samples; batches of probes.

    Attributes:
        batches: indices of batches of the central test set.
        clients: ids.
        probes: of each probe, indices of its batches.
    """

    batches: range
    clients: Sequence[int]
    probes: Sequence[range] = ()


@dataclass(frozen=True, slots=True)
class EvaluationPart:
    """The results of an `EvaluationShare`.

    Attributes:
        central: the module's logs on the test batches; None if there were none.
        clients: each client's metrics, by id, then by the model that they are of.
        probes: the module's logs on the probes' batches, by the probe's name.
    """

    central: Logged | None
    clients: Mapping[int, Rows]
    probes: Mapping[str, Logged] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Examiner:
    """Evaluates with a worker's model.

    Attributes:
        model: the global model's; nothing is evaluated centrally if all of it is personal.
        data: the clients' samples, and the central test samples.
        evaluator: evaluates, and decides after which rounds.
        seed: the run's seed.
        strategy: says which model is a client's own.
        trainer: takes the local steps before a finetuned model is evaluated.
        probes: samples to evaluate besides the central test set, whenever that is due.
        kinds: the models of clients that have their own, as for `Worker`.
    """

    model: BoundModel
    data: FederatedData
    evaluator: Evaluator
    seed: int
    strategy: "Strategy"
    trainer: Trainer
    probes: Sequence[Probe] = ()
    kinds: Sequence[BoundModel] = ()

    def model_of(self, client_id: int) -> BoundModel:
        """The model that a client trains, as `Worker.model_of`."""
        return self.kinds[client_id % len(self.kinds)] if self.kinds else self.model

    def try_out(self) -> None:
        """Evaluate a small batch of everything central, so that errors are raised before any round.

        Raises:
            ValueError: the module's step cannot evaluate, or changes what clients share, or logs no accuracy, and
                there are probes.
        """
        outside = outside_of(self.kinds or [self.model], self.trainer)
        self.evaluator.try_out(self.model, self.data, seed=self.seed)
        outside.refuse("in evaluation")
        if not len(self.data.splits.test):
            return
        vector = self.model.local.clone()
        for probe in self.probes:
            if not len(probe.indices):
                raise ValueError(f"adversary: {probe.name} has no samples: the test set has none of these classes")
            few = probe.indices[: self.evaluator.batch_size][:8]
            try:
                logged = self.evaluator.part(self.model, probe.source, few, range(1), seed=self.seed)
                self._accuracy(probe.name, [logged])
            finally:
                self.model.load(vector)

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round of a run of `rounds` rounds; may be empty."""
        share = self.due(state.round, rounds)
        if share is None:
            return {}
        kept, sent = self.memory(state, share), self.variables(state, share)
        return self.combine([self.evaluate_share(state.vector, state.round, share, kept, sent)])

    def due(self, round: int, rounds: int) -> EvaluationShare | None:
        """All that is to be evaluated after a round; None if nothing is."""
        central, clients = self.evaluator.due(round, rounds)
        central = central and self.model.layout.size > 0
        batches = range(self.evaluator.num_batches(self.data) if central else 0)
        held = self.data.holding_out().tolist() if clients else []
        probes = [range(ceil(len(probe.indices) / self.evaluator.batch_size)) for probe in self.probes if central]
        return EvaluationShare(batches, held, tuple(probes)) if central or clients else None

    def memory(self, state: ServerState, share: EvaluationShare) -> dict[int, Tensors]:
        """What the evaluation of a share's clients needs of their memory, by client id."""
        if not self._needed:
            return {}
        known = ((client_id, self._reduced(state.memory.get(client_id, {}))) for client_id in share.clients)
        return {client_id: memory for client_id, memory in known if memory}

    def variables(self, state: ServerState, share: EvaluationShare) -> Tensors:
        """What the server would send in the next round besides the model; empty if no client is evaluated."""
        if not share.clients:
            return {}
        seed = seed_for(self.seed, state.round, SERVER, "evaluation/broadcast")
        with isolated_randomness(seed, self.model.local.device):
            weight = self.strategy.weight_of_all(self.data.sizes)
            return self.strategy.broadcast(state, state.round + 1, weight).variables

    @property
    def _needed(self) -> list[str]:
        return [*self.strategy.evaluates, *([PERSONAL] if self.model_of(0).layout.personal else [])]

    def _reduced(self, memory: Tensors) -> Tensors:
        return {name: memory[name] for name in self._needed if name in memory}

    @property
    def divisible(self) -> bool:
        """Whether several workers can evaluate parts of the central test set, and of probes."""
        return self.evaluator.divisible(self.model.module)  # type: ignore[arg-type]

    def evaluate_share(
        self,
        vector: Tensor,
        round: int,
        share: EvaluationShare,
        memory: Mapping[int, Tensors],
        variables: Tensors | None = None,
    ) -> EvaluationPart:
        """Evaluate a share of what is due after a round.

        Args:
            vector: the global model, `[layout.size]`.
            round: the round, which seeds the evaluation.
            share: test batches, clients, and batches of probes.
            memory: what `memory` returned for the share, or the whole memory of its clients.
            variables: what `variables` returned for it.

        Raises:
            ClientError: the strategy gives a client no model that can be evaluated, or its finetuning raised.
            ValueError: own code has changed what clients share.
        """
        outside = outside_of(self.kinds or [self.model], self.trainer)
        self.model.load(vector)
        seed = seed_for(self.seed, round, SERVER, "evaluation")
        test = self.data.splits.test
        central = None
        if len(share.batches):
            indices = np.arange(len(test))
            central = self.evaluator.part(self.model, test, indices, share.batches, seed=seed, reuse=True)
        probes = {}
        for probe, batches in zip(self.probes, share.probes, strict=False):
            if len(batches):
                own = seed_for(self.seed, round, SERVER, f"evaluation/{probe.name}")
                probes[probe.name] = self.evaluator.part(
                    self.model, probe.source, probe.indices, batches, seed=own, reuse=True
                )
        broadcast = self.broadcast(vector, round, variables or {})
        clients = {c: self.client(c, broadcast, memory.get(c, {})) for c in share.clients}
        outside.refuse("in evaluation")
        return EvaluationPart(central, clients, probes)

    def broadcast(self, vector: Tensor, round: int, variables: Tensors) -> Broadcast:
        """What the server would send in the round after `round`, on the model's device."""
        device = self.model.local.device
        sent = {name: tensor.to(device) for name, tensor in variables.items()}
        return Broadcast(round + 1, vector.to(device), 0.0, sent)

    def client(self, client_id: int, broadcast: Broadcast, memory: Tensors, *, train: bool = False) -> Rows:
        """The metrics of each of a client's models on its held-out (or training) samples.

        Args:
            client_id: the client.
            broadcast: what `broadcast` returned.
            memory: the client's, or what is needed of it.
            train: evaluate on the training samples.

        Raises:
            ClientError: the strategy gives it no model that can be evaluated, or its finetuning raised.
        """
        try:
            models = self._models(client_id, broadcast, self._reduced(memory))
        except Exception as error:
            message = f"client {client_id}, evaluation: {type(error).__name__}: {error}"
            raise ClientError(message, client_id=client_id, traceback=traceback.format_exc()) from error
        over, rows = broadcast.round - 1, {}
        seed = seed_for(self.seed, over, SERVER, "evaluation")
        for name, local in models.items():
            model = self.model if name == "global" else self.model_of(client_id)
            model.load(local)
            rows[name] = self.evaluator.client(model, self.data, client_id, over, train=train, seed=seed)
        return rows

    def _models(self, client_id: int, broadcast: Broadcast, memory: Tensors) -> dict[str, Tensor]:
        """A client's models, by name: local vectors."""
        source, indices = self.data.splits.train, self.data.train_indices(client_id, broadcast.round - 1)
        weight = self.strategy.weight(len(indices))
        task = ClientTask(broadcast.round, client_id, len(indices), weight, memory)
        seed = seed_for(self.seed, broadcast.round - 1, client_id, "evaluation/models")
        model, public = self.model_of(client_id), self.data.splits.public
        models = {"global": self.model.local_vector(broadcast.vector)} if self.model.layout.size else {}
        if not self.strategy.sends_model:
            broadcast = replace(broadcast, vector=broadcast.vector[:0])
        with isolated_randomness(seed, model.local.device):
            problem = LocalProblem.of(model, source, indices, task, broadcast, seed, public)
            own = self.strategy.personal_model(problem)
            if own is not None and client_id not in self.data.held_out_clients:
                models["personal"] = self._checked(own, model)
            if self.evaluator.finetune_steps:
                asked = self.strategy.finetuning(replace(problem, steps=self.evaluator.finetune_steps))
                models["finetuned"] = self.trainer.fit_batch([asked], NoHooks())[0].vector
        return models

    def _checked(self, own: Tensor, model: BoundModel) -> Tensor:
        if own.shape != model.local.shape:
            raise ValueError(
                f"strategy: {type(self.strategy).__name__}.personal_model gives shape {list(own.shape)}, must be "
                f"{list(model.local.shape)}"
            )
        return own.to(model.local)

    def combine(self, parts: Sequence[EvaluationPart]) -> dict[str, float]:
        """The metrics of a round from the parts of its evaluation, which may come in any order."""
        metrics = joined([part.central for part in parts if part.central is not None], self.model.module)
        for name in dict.fromkeys(name for part in parts for name in part.probes):
            metrics[name] = self._accuracy(name, [part.probes[name] for part in parts if name in part.probes])
        clients = {client_id: row for part in parts for client_id, row in part.clients.items()}
        return metrics | self.summary(clients)

    def summary(self, clients: Mapping[int, Rows]) -> dict[str, float]:
        """Statistics over clients, for each of their models: those that take part, and those that never do."""
        apart = self.data.held_out_clients
        those = {"clients": clients.keys() - {*apart}, "held_out_clients": clients.keys() & {*apart}}
        found: dict[str, float] = {}
        for prefix, ids in those.items():
            for model in MODELS:
                rows = [dict(clients[client_id][model]) for client_id in sorted(ids) if model in clients[client_id]]
                found |= summarize_clients(rows, f"{prefix}/{model}")
        return found

    def _accuracy(self, name: str, parts: Sequence[Logged]) -> float:
        """The accuracy among what the module logged on a probe.

        Raises:
            ValueError: it logged none.
        """
        logged = joined(parts, self.model.module)
        for wanted in ("accuracy", "acc"):
            found = [key for key in logged if key.rpartition("/")[2].rpartition("_")[2].lower() == wanted]
            if found:
                return logged[found[0]]
        raise ValueError(
            f"{name} is the accuracy that {type(self.model.module).__name__} logs, and it logs none: "
            f"{', '.join(sorted(logged)) or 'nothing'}"
        )
