"""Evaluation as a worker does it on every backend: what is due after a round, a share of it, and all shares joined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from torch import Tensor

from flrl.adversaries.base import Probe
from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.evaluation import Evaluator, summarize_clients
from flrl.lightning.logs import Logged, joined
from flrl.seeding import SERVER, seed_for
from flrl.trainers.problem import PERSONAL
from flrl.types import ServerState, Tensors


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
        clients: each client's metrics, by id.
        probes: the module's logs on the probes' batches, by the probe's name.
    """

    central: Logged | None
    clients: Mapping[int, Mapping[str, float]]
    probes: Mapping[str, Logged] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Examiner:
    """Evaluates with a worker's model.

    Attributes:
        model: the worker's.
        data: the clients' samples, and the central test samples.
        evaluator: evaluates, and decides after which rounds.
        seed: the run's seed.
        probes: samples to evaluate besides the central test set, whenever that is due.
    """

    model: BoundModel
    data: FederatedData
    evaluator: Evaluator
    seed: int
    probes: Sequence[Probe] = ()

    def try_out(self) -> None:
        """Evaluate a small batch of everything central, so that errors are raised before any round.

        Raises:
            ValueError: the module's step cannot evaluate, or logs no accuracy, and there are probes.
        """
        self.evaluator.try_out(self.model, self.data, seed=self.seed)
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
        return self.combine([self.evaluate_share(state.vector, state.round, share, self.personal(state, share))])

    def due(self, round: int, rounds: int) -> EvaluationShare | None:
        """All that is to be evaluated after a round; None if nothing is."""
        central, clients = self.evaluator.due(round, rounds)
        batches = range(self.evaluator.num_batches(self.data) if central else 0)
        held = self.data.holding_out().tolist() if clients else []
        probes = [range(ceil(len(probe.indices) / self.evaluator.batch_size)) for probe in self.probes if central]
        return EvaluationShare(batches, held, tuple(probes)) if central or clients else None

    def personal(self, state: ServerState, share: EvaluationShare) -> dict[int, Tensors]:
        """The personal parts of a share's clients, from their memory, by client id; empty for a model without any."""
        if not self.model.layout.personal:
            return {}
        known = ((client_id, state.memory.get(client_id, {})) for client_id in share.clients)
        return {client_id: {PERSONAL: memory[PERSONAL]} for client_id, memory in known if PERSONAL in memory}

    @property
    def divisible(self) -> bool:
        """Whether several workers can evaluate parts of the central test set, and of probes."""
        return self.evaluator.divisible(self.model.module)  # type: ignore[arg-type]

    def evaluate_share(
        self, vector: Tensor, round: int, share: EvaluationShare, personal: Mapping[int, Tensors]
    ) -> EvaluationPart:
        """Evaluate a share of what is due after a round.

        Args:
            vector: the global model, `[layout.size]`.
            round: the round, which seeds the evaluation.
            share: test batches, clients, and batches of probes.
            personal: what `personal` returned for the share.
        """
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
        clients = {}
        for client_id in share.clients:
            kept = personal.get(client_id, {}).get(PERSONAL)
            self.model.load(self.model.local_vector(vector.to(self.model.local.device), kept))
            clients[client_id] = self.evaluator.client(self.model, self.data, client_id, seed=seed)
        return EvaluationPart(central, clients, probes)

    def combine(self, parts: Sequence[EvaluationPart]) -> dict[str, float]:
        """The metrics of a round from the parts of its evaluation, which may come in any order."""
        metrics = joined([part.central for part in parts if part.central is not None], self.model.module)
        for name in dict.fromkeys(name for part in parts for name in part.probes):
            metrics[name] = self._accuracy(name, [part.probes[name] for part in parts if name in part.probes])
        clients = {client_id: row for part in parts for client_id, row in part.clients.items()}
        return metrics | summarize_clients([dict(clients[client_id]) for client_id in sorted(clients)])

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
