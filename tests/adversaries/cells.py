"""Every rule against every adversary, two rounds each, in one run: `python -m tests.adversaries.cells BACKEND FILE`.

A round's number says which rule and which adversary it belongs to; in its first round a cell starts from a model of
zeros, with nothing remembered. So thousands of rounds need each backend's processes once.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries import Adversary, AdversaryContext, Probe, Threat
from flrl.aggregation import Combined, Mean, Reducer, RowRule, Rows, RowsReducer
from flrl.backends import MpiBackend, ProcessBackend, SerialBackend
from flrl.backends.mpi import launch
from flrl.callbacks import Callback, Callbacks
from flrl.data import FederatedData, Splits
from flrl.data.sources import Source
from flrl.evaluation import Evaluator
from flrl.layout import ParameterLayout
from flrl.process_setup import prepare
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer
from flrl.types import Aggregate, Broadcast, ClientUpdate, Context, RoundRecord, ServerState, Tensors
from flrl.worker import Worker
from tests.adversaries.parts import KINDS, Pictures, images
from tests.aggregation.test_rules import KINDS as RULES
from tests.toys import blocks

SIZES = (6, 9, 12, 8, 5, 7, 10, 6)
MALICIOUS = (1, 4)
ROUNDS = 2
"""Of a cell."""
MEAN = "mean"
Cell = tuple[str, str]


def cells(*, rows: bool, rules: Sequence[str] = tuple(RULES), kinds: Sequence[str] = tuple(KINDS)) -> list[Cell]:
    """Names of rules on rows, or of the mean, each with the adversaries that go with it."""
    if rows:
        return [(rule, kind) for rule in rules for kind in kinds]
    return [(MEAN, kind) for kind in KINDS if not KINDS[kind].rows]


def turn(round: int) -> tuple[int, bool]:
    """The number of a round's cell, and whether the round is its first one."""
    place, number = divmod(round - 1, ROUNDS)
    return place, number == 0


class Every(Adversary):
    """In each round the adversary of its cell."""

    needs_rows = True

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__(clients=MALICIOUS)
        made = {kind: KINDS[kind].make(clients=MALICIOUS) for kind in dict.fromkeys(kinds)}
        self.made = [made[kind] for kind in kinds]
        self.tested = KINDS["backdoor, pattern"].make()

    def samples(self, source: Source, indices: np.ndarray, context: AdversaryContext) -> tuple[Source, np.ndarray]:
        return self.made[turn(context.round)[0]].samples(source, indices, context)

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        place, first = turn(context.round)
        return self.made[place].update(update, {} if first else memory, context)

    def collude(self, honest: Tensor, own: Tensor, state: Tensors, context: AdversaryContext) -> tuple[Tensor, Tensors]:
        place, first = turn(context.round)
        if not self.made[place].needs_rows:
            return own, {}
        return self.made[place].collude(honest, own, {} if first else state, context)

    def probes(self, test: Source) -> Sequence[Probe]:
        return self.tested.probes(test)


class EveryRule(RowRule):
    """In each round the rule of its cell."""

    def __init__(self, rules: Sequence[str]) -> None:
        super().__init__()
        self.rules = [RULES[rule].rule for rule in rules]

    def rule(self, rows: Rows) -> Tensor:
        raise AssertionError("the rule of a cell is asked")

    def combine(self, reducer: Reducer, state: Tensors, context: Context) -> Combined:
        assert isinstance(reducer, RowsReducer)
        place, first = turn(context.round)
        own = RowsReducer(reducer.sizes, self.rules[place])
        own.rows.update(reducer.rows)
        return own.combined({} if first else state, context.generator)


class Restarting(FedAvg):
    """Begins each cell with a model of zeros."""

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        return super().broadcast(self._at(state, round), round, total_weight)

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        return super().aggregate(self._at(state, state.round + 1), aggregate, layout)

    def _at(self, state: ServerState, round: int) -> ServerState:
        return replace(state, vector=torch.zeros_like(state.vector)) if turn(round)[1] else state


@dataclass(frozen=True)
class Cells:
    """The recipe of a run of all cells, with rules on rows or with the mean."""

    rows: bool
    rules: tuple[str, ...] = tuple(RULES)
    kinds: tuple[str, ...] = tuple(KINDS)

    def data(self) -> FederatedData:
        return FederatedData(Splits(images(sum(SIZES)), images(30, seed=8)), blocks(SIZES), seed=0)

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        rules, kinds = zip(*cells(rows=self.rows, rules=self.rules, kinds=self.kinds), strict=True)
        aggregator = EveryRule(rules) if self.rows else Mean()
        server = partial(torch.optim.SGD, lr=1.0)
        rounds = ROUNDS * len(rules)
        strategy = Restarting(rounds=rounds, sampler=AllClients(), server_optimizer=server, aggregator=aggregator)
        model = prepare(Pictures(), threads=threads, device=device)
        threat = Threat.of(Every(kinds), len(SIZES), 0, data.splits.test)
        evaluator = Evaluator(batch_size=7)
        return Worker(model, data, EagerTrainer(batch_size=4), strategy, evaluator, 0, threat=threat)


class Noting(Callback):
    """Notes each round's digest, numbers, checksums, and who lied and was filtered."""

    def __init__(self) -> None:
        self.rounds: list[Any] = []

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        record = history[-1]
        numbers = {name: value for name, value in record.metrics.items() if not name.startswith("time/")}
        reports = [(r.client_id, r.checksum, r.malicious, r.filtered) for r in record.reports]
        self.rounds.append([record.digest, repr(sorted(numbers.items())), repr(reports)])


def run(backend: Any, recipe: Cells) -> list[Any]:
    """All cells on a backend."""
    noting = Noting()
    worker = recipe.worker(backend.share(recipe.data()), threads=1, device="cpu")
    try:
        backend.start(worker, recipe)
        state = ServerState(0, torch.zeros(worker.model.layout.size))
        worker.strategy.fit(
            state,
            backend=backend,
            layout=worker.model.layout,
            seed=0,
            callbacks=Callbacks([noting]),
            threat=worker.threat,
        )
    finally:
        backend.close()
    return noting.rounds


def main(name: str, output: Path) -> None:
    """Run all cells, and write what was noted by cell."""
    if name == "mpi":
        launch.prepare("flrl.backends.MpiBackend")
    make = {"serial": SerialBackend, "process": partial(ProcessBackend, workers=2), "mpi": MpiBackend}[name]
    noted = {}
    for rows in (True, False):
        rounds = run(make(), Cells(rows))
        for place, (rule, kind) in enumerate(cells(rows=rows)):
            noted[f"{rule} against {kind}"] = rounds[ROUNDS * place : ROUNDS * (place + 1)]
    output.write_text(json.dumps(noted))


if __name__ == "__main__":
    from tests.adversaries import cells as this  # a recipe can be sent to processes that import it by this name

    launch.run_under_mpi(lambda: this.main(sys.argv[1], Path(sys.argv[2])))
