"""Every module of the zoo under every engine: trained by one worker, by two, and resumed by a third.

python -m tests.zoo.table        writes the table in docs/modules.md
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos import boring_classes, lstm
from torch import Tensor, nn

from flrl.backends.base import Received
from flrl.callbacks import Callbacks
from flrl.data import FederatedData, Splits, TensorSource
from flrl.data.sources import DatasetSource, Source
from flrl.evaluation import Evaluator
from flrl.process_setup import prepare
from flrl.sampling import AllClients
from flrl.setup import Setup
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, Trainer, VectorizedTrainer
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState
from flrl.worker import Worker, client_batches
from tests.toys import Linear, Rich, blobs, blocks
from tests.zoo import shapes, sharing, stateful

ENGINES: dict[str, type[Trainer]] = {
    "eager": EagerTrainer,
    "traced": TracedTrainer,
    "lightning": LightningTrainer,
    "vectorized": VectorizedTrainer,
}
SIZES = (8, 12, 10)
CLOSE = 1e-5
DOCUMENT = Path(__file__).parents[2] / "docs" / "modules.md"


@dataclass(frozen=True)
class Animal:
    """A module, what its samples look like, and why each engine that refuses it does so.

    Attributes:
        make: the module.
        source: its samples, given their number and a seed.
        refused: by engine, the message.
    """

    make: Callable[[], pl.LightningModule]
    source: Callable[[int, int], Source] = lambda number, seed: blobs(number, seed=seed)


def in_dicts(number: int, seed: int) -> Source:
    """Samples as dicts."""
    source = blobs(number, seed=seed)
    return DatasetSource([{"x": x, "label": y} for x, y in zip(source.inputs, source.targets, strict=True)])  # type: ignore[arg-type]


def in_triples(number: int, seed: int) -> Source:
    """Samples with weights."""
    source = blobs(number, seed=seed)
    weights = torch.rand(number, generator=torch.Generator().manual_seed(seed))
    return DatasetSource(list(zip(source.inputs, source.targets, weights, strict=True)))  # type: ignore[arg-type]


def bare(number: int, seed: int) -> Source:
    """Samples that are one tensor of 32 numbers, without a class."""
    numbers = torch.randn(number, 32, generator=torch.Generator().manual_seed(seed))
    return DatasetSource(list(numbers))  # type: ignore[arg-type]


def words(number: int, seed: int) -> Source:
    """Four words of twelve, and those that follow."""
    text = torch.randint(12, (number, 5), generator=torch.Generator().manual_seed(seed))
    return TensorSource(text[:, :4].contiguous(), text[:, 1:].contiguous())


class Speaking(lstm.LightningLSTM):
    """Lightning's LSTM, which keeps its hidden state as an attribute; small."""

    def __init__(self) -> None:
        super().__init__(vocab_size=12)
        self.model = lstm.SimpleLSTM(vocab_size=12, ninp=6, nhid=6, nlayers=1, dropout=0.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.hidden is not None and self.hidden[0].shape[1] != len(batch[0]):
            self.hidden = None  # a smaller last batch
        return super().training_step((batch[0].t(), batch[1].t().contiguous()), batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lazy(*layers: nn.Module) -> pl.LightningModule:
    """A net on images of one row."""
    return shapes.Net(nn.Sequential(nn.Unflatten(1, (1, 1, 5)), *layers, nn.Flatten(), nn.Linear(12, 3)))


def layers(*parts: nn.Module) -> pl.LightningModule:
    """Layers between five features and three classes."""
    return shapes.Net(nn.Sequential(*parts))


ZOO: dict[str, Animal] = {
    # State that is put back before each client.
    "a number": Animal(stateful.Counter),
    "a plain tensor": Animal(stateful.PlainTensor),
    "a list": Animal(stateful.Listed),
    "a dict in a dict": Animal(stateful.Nested),
    "torch's generator": Animal(stateful.OwnGenerator),
    "NumPy's Generator": Animal(stateful.NumpyGenerator),
    "NumPy's RandomState": Animal(stateful.NumpyRandomState),
    "Python's Random": Animal(stateful.PythonGenerator),
    "a counter in a submodule": Animal(stateful.Submodule),
    "a torchmetrics object in the loss": Animal(stateful.TrainMetric),
    "a torchmetrics object that is logged": Animal(stateful.LoggedMetric),
    "an object with slots and a deque": Animal(stateful.Metered),
    "a number and a list of the class": Animal(stateful.OfTheClass),
    "a NumPy array": Animal(stateful.Array),
    "hooks registered while training": Animal(stateful.Hooking),
    "attributes that come and go, modes": Animal(stateful.Toggling),
    "left behind by configure_optimizers": Animal(stateful.Configured),
    "a number that the class gets": Animal(sharing.NewOfTheClass),
    "results that are kept, warnings, logs": Animal(sharing.Harmless),
    "a buffer of whole numbers": Animal(stateful.WholeBuffer),
    "evaluation changes what follows": Animal(stateful.StatefulEvaluation),
    "a hidden state (Lightning's LSTM)": Animal(Speaking, words),
    # State that lasts.
    "an average in a buffer that is replaced": Animal(stateful.AveragedBuffer),
    "an average of the weights in a buffer": Animal(shapes.Averaged),
    # State that nobody could put back, or that would not be sent.
    "an iterator": Animal(stateful.Iterating),
    "a frozen teacher that follows": Animal(stateful.Teacher),
    "a layer made while training": Animal(stateful.Growing),
    "a tensor that is no parameter is stepped": Animal(stateful.Loose),
    "a global number": Animal(stateful.Global),
    "a global list": Animal(stateful.GlobalList),
    "a number of the enclosing function": Animal(stateful.enclosed),
    "a list of an enclosing function": Animal(sharing.EnclosedList),
    "a number of another class": Animal(sharing.OtherClass),
    "an attribute of a global object": Animal(sharing.GlobalObject),
    "a number of another file": Animal(sharing.OtherNumber),
    "a list of another file": Animal(sharing.OtherList),
    "a function of another file": Animal(sharing.OtherFunction),
    "a number of a file that is imported late": Animal(sharing.ImportedLate),
    "an attribute of a function": Animal(sharing.FunctionAttribute),
    "a default argument": Animal(sharing.DefaultArgument),
    "a list that functools.cache keeps": Animal(sharing.KeptResult),
    "a global iterator": Animal(sharing.GlobalIterator),
    # What it is made of.
    "a linear layer": Animal(Linear),
    "tied weights": Animal(shapes.Tied),
    "a frozen backbone": Animal(shapes.Frozen),
    "adapters of low rank": Animal(shapes.Adapted),
    "float64": Animal(shapes.Double),
    "layer norm and attention": Animal(lambda: layers(shapes.Attention())),
    "LSTM": Animal(lambda: layers(shapes.Recurrent(nn.LSTM))),
    "GRU": Animal(lambda: layers(shapes.Recurrent(nn.GRU))),
    "convolution and group norm": Animal(lambda: lazy(nn.Conv2d(1, 4, (1, 3)), nn.GroupNorm(2, 4), nn.ReLU())),
    "dropout": Animal(lambda: layers(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))),
    "batch norm": Animal(lambda: layers(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))),
    "weight norm": Animal(lambda: layers(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)))),
    "spectral norm": Animal(lambda: layers(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)))),
    "torchvision's mobilenet_v3_small": Animal(shapes.Mobile),
    "layers made in configure_model": Animal(shapes.MadeLate),
    # What it takes and returns.
    "batches that are dicts": Animal(shapes.FromDict, in_dicts),
    "batches of three": Animal(shapes.FromTriple, in_triples),
    "outputs that are objects": Animal(shapes.Hub),
    "nothing for some batches": Animal(shapes.Skipping),
    "a penalty, many logs": Animal(shapes.Penalised),
    "a torchmetrics object in evaluation": Animal(shapes.Measured),
    "save_hyperparameters": Animal(shapes.Saving),
    # How it is optimized.
    "many hooks, momentum, a schedule": Animal(Rich),
    "OneCycleLR": Animal(shapes.OneCycle),
    "the optimizer is kept as an attribute": Animal(shapes.Keeping),
    "gradients of two batches added up": Animal(shapes.Accumulating),
    "manual optimization": Animal(shapes.Manual),
    "two optimizers": Animal(shapes.Two),
    # Lightning's own demonstrations.
    "BoringModel": Animal(boring_classes.BoringModel, bare),
    "a subclass of BoringModel": Animal(shapes.Boring, bare),
    "ManualOptimBoringModel": Animal(boring_classes.ManualOptimBoringModel, bare),
    "DemoModel": Animal(boring_classes.DemoModel, bare),
    "LightningTransformer": Animal(shapes.Language),
}


class _Central(Evaluator):
    """Evaluates what can be evaluated: some demonstrations have no test_step."""

    def due(self, round: int, rounds: int) -> tuple[bool, bool]:
        return self.evaluates, False

    evaluates = True


def worker_of(animal: Animal, engine: str) -> Worker:
    """A new worker, as a process of its own would make it."""
    number = sum(SIZES)
    torch.manual_seed(0)
    module = animal.make()
    module.configure_model()
    data = FederatedData(Splits(animal.source(number, 7), animal.source(20, 8)), blocks(SIZES), seed=0)
    trainer = ENGINES[engine](batch_size=4, shuffle=True, lr_decay=0.9)
    strategy = FedAvg(rounds=2, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    model = prepare(module, threads=1, device="cpu")
    setup = Setup.of(module, strategy, trainer, data.sizes)
    setup.check()
    evaluator = _Central(batch_size=6)
    try:
        evaluator.check(setup)
    except ValueError:
        evaluator.evaluates = False
    return Worker(model, data, trainer, strategy, evaluator, seed=0)


class Workers:
    """A backend of several workers in this process, which train their clients in reverse order."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers

    @property
    def sizes(self) -> np.ndarray:
        """Training samples of every client."""
        return self.workers[0].data.sizes

    def train(self, broadcast: Broadcast, tasks: list[ClientTask], on_report: Callable[..., None]) -> Received:
        """The client batches by turns, the last ones first."""
        batches = client_batches(self.workers[0].batched(tasks))
        if len(self.workers) > 1:
            batches.reverse()
        reports: list[ClientReport] = []
        reducers = []
        for index, worker in enumerate(self.workers):
            own = [task for batch in batches[index :: len(self.workers)] for task in batch]
            reducer, found = worker.train(broadcast, own, on_report)
            reducers.append(reducer)
            reports += found
        parcels = [reducer.parcel() for reducer in reducers[1:]]
        total = reducers[0].merge(parcels)
        for parcel in parcels if total is not None else []:  # rules on rows have no sum
            total.add_(parcel.summand)
        return Received(reducers[0], tuple(sorted(reports, key=lambda report: report.client_id)))

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """Batches by turns, where they can be."""
        share = self.workers[0].examiner.due(state.round, rounds)
        if share is None:
            return {}
        if not self.workers[0].examiner.divisible or len(self.workers) == 1:
            return self.workers[0].examiner.evaluate(state, rounds=rounds)
        middle = len(share.batches) // 2
        parts = [range(middle), range(middle, len(share.batches))]
        shares = zip(self.workers, parts, strict=True)
        return self.workers[0].examiner.combine(
            [
                worker.examiner.evaluate_share(state.vector, state.round, replace(share, batches=part), {})
                for worker, part in reversed(list(shares))
            ]
        )


def rounds_of(worker: Worker, backend: Workers, state: ServerState | None, rounds: int) -> tuple[ServerState, Any]:
    """Train up to a round; the state, and the metrics of each round."""
    layout, strategy = worker.model.layout, worker.strategy
    strategy.rounds = rounds
    first = strategy.initialize(worker.model.vector.clone(), layout) if state is None else state
    worker.rehearse(*strategy.plan(first, worker.data.sizes, worker.seed, worker.model.layout))
    state, history = strategy.fit(first, backend=backend, layout=layout, seed=0, callbacks=Callbacks())  # type: ignore[arg-type]
    numbers = [{k: v for k, v in record.metrics.items() if not k.startswith("time/")} for record in history]
    return state, numbers


@dataclass(frozen=True)
class Outcome:
    """What an engine makes of a module.

    Attributes:
        reason: why it is refused, or what is wrong.
        vector: the model after two rounds, None where it is refused.
        numbers: its metrics.
    """

    reason: str
    vector: Tensor | None = None
    numbers: Any = None


def outcome(animal: Animal, engine: str, reference: Outcome | None = None) -> Outcome:
    """Two rounds by two workers, and by a third one that resumes after the first: to be what one worker makes of it.

    Args:
        animal: the module.
        engine: its engine.
        reference: what one worker made of it with an engine of the same bits, if that is known.
    """
    try:
        worker = worker_of(animal, engine)
        start = worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout)
        worker.rehearse(*worker.strategy.plan(start, worker.data.sizes, 0, worker.model.layout))
    except ValueError as error:
        return Outcome(str(error))
    if reference is None or reference.vector is None or engine == "vectorized":
        alone, numbers = rounds_of(worker, Workers([worker]), None, 2)
        worker, reference = worker_of(animal, engine), Outcome("", alone.vector, numbers)
    state, early = rounds_of(worker, Workers([worker, worker_of(animal, engine)]), None, 1)
    last = worker_of(animal, engine)
    resumed, late = rounds_of(last, Workers([last]), state, 2)
    assert reference.vector is not None
    if torch.equal(resumed.vector, start.vector):
        return Outcome("WRONG: it does not move", resumed.vector)
    if not torch.equal(reference.vector, resumed.vector) or repr(reference.numbers) != repr([*early, *late]):
        return Outcome("WRONG: other bits or metrics with two workers and a resume, or another engine", resumed.vector)
    return Outcome("", resumed.vector, reference.numbers)


def row_of(animal: Animal, engines: Iterable[str] = ENGINES) -> dict[str, str]:
    """A module's row of the table: by engine."""
    reference: Outcome | None = None
    cells = {}
    for engine in engines:
        found = outcome(animal, engine, reference)
        if found.vector is None:
            cells[engine] = f"refused: {found.reason}"
        elif found.reason:
            cells[engine] = found.reason
        elif reference is None or reference.vector is None:
            cells[engine] = "same bits"
        elif torch.equal(found.vector, reference.vector) and engine != "vectorized":  # of a batch, it is a chance
            cells[engine] = "same bits"
        else:
            distance = float((found.vector - reference.vector).norm() / reference.vector.norm())
            cells[engine] = "close" if distance <= CLOSE else f"WRONG: {distance:.2g} away"
        reference = reference or (None if found.vector is None else found)
    return cells


HEADER = """# Modules of odd shape

What becomes of LightningModules that keep state, or are made, fed or optimized in unusual ways, under each engine.
Every one that is not refused was trained for two rounds by one worker, and again by two workers in another order with a
third one that resumed after the first round: the models have the same bits, and so do all metrics. *Same bits*: as the
first engine in the row that trains it. *Close*: within 1e-5 of that, relatively; that a client batch has the same bits
for a module is a matter of the processor. Refusals come before the first round.
What is put back between clients, and what lasts: [own.md](own.md#state).

`python -m tests.zoo.table` writes this page, `pytest -m zoo -n 0` compares all of it with what is so, and runs every
module through `flrl-train`, serially and under MPI; `pytest` does so for a part.
"""


def page(rows: dict[str, dict[str, str]]) -> str:
    """The page in docs."""
    notes: list[str] = []
    lines = ["| module | " + " | ".join(ENGINES) + " |", "|---|" + "---|" * len(ENGINES)]
    for name, row in rows.items():
        cells = []
        for cell in row.values():
            reason = cell.removeprefix("refused: ")
            if reason != cell:
                notes += [] if reason in notes else [reason]
                cell = f"refused ({notes.index(reason) + 1})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    reasons = [f"{number}. {reason}" for number, reason in enumerate(notes, 1)]
    return "\n".join([HEADER, *lines, "", "Refusals:", "", *reasons, ""])


def module_of(*, animal: str) -> pl.LightningModule:
    """A module by its name, for `tests/conf/model/zoo.yaml`."""
    return ZOO[animal].make()


def splits_of(*, animal: str) -> Splits:
    """Its samples, for `tests/conf/dataset/zoo.yaml`."""
    return Splits(ZOO[animal].source(sum(SIZES), 7), ZOO[animal].source(20, 8))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = {}
    for name, animal in ZOO.items():
        print(name, flush=True)
        rows[name] = row_of(animal)
    DOCUMENT.write_text(page(rows))
