"""A round of every strategy on job C beside a round of FedAvg, and beside other frameworks that have the algorithm.

    python -m benchmarks.strategies
    python -m benchmarks.strategies --only fedprox scaffold ditto --peers pfl fluke fedlab --repetitions 5

Job C of `benchmarks.run`: the 2NN, 1,000 clients of 60 images of MNIST, 100 a round, batches of 10, one thread. A
strategy and FedAvg take turns, a few rounds each, and every other repetition begins with the other one; a repetition's
ratio is that of their medians over rounds, and the median of the repetitions' ratios is what counts. Seconds and ratios
are of processor time, on all sides, so that they hardly depend on what else the machine does; wall time beside it. A
peer runs in a process of its own, right before flrl runs once more.

`--peers` takes environments that `python -m benchmarks.peers.run` has made. A strategy that refuses the job, and a
peer that fails or does not have the algorithm, is named in the table, and the others go on. The report is written after
every strategy.
"""

import argparse
import gc
import json
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.overhead import ROOT, processor
from benchmarks.peers.run import PEERS, Run, measured
from benchmarks.run import JOBS, composed
from flrl.backends import SerialBackend
from flrl.callbacks import Callback, Callbacks
from flrl.config import CONF_DIR
from flrl.recipe import Recipe
from flrl.types import RoundRecord, ServerState

STRATEGIES = sorted(path.stem for path in (CONF_DIR / "strategy").glob("*.yaml"))
REFERENCE = "fedavg"
SETTINGS: dict[str, list[str]] = {}
"""What a strategy needs besides: public samples, a net with certain layers."""
AT_PEERS = {
    "fedavg": ("pfl", "fluke", "fedlab"),
    "fedprox": ("pfl", "fluke", "fedlab"),
    "scaffold": ("pfl", "fluke", "fedlab"),
    "ditto": ("fluke",),
}
"""The algorithms that peers' scripts can run. FedLab's Ditto cannot be run."""


class Laps(Callback):
    """The processor and the wall seconds of each round, evaluation included."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self._last = (0.0, 0.0)

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        """Begin a round."""
        self._last = time.process_time(), time.perf_counter()

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """End it."""
        now = time.process_time(), time.perf_counter()
        self.seconds.append((now[0] - self._last[0], now[1] - self._last[1]))


class Side:
    """A strategy on job C, from the same initial model every time."""

    def __init__(self, strategy: str, arguments: Namespace, *more: str) -> None:
        shared = ["logger=none", "paths.output_dir=.", f"paths.data_dir='{arguments.data}'", "trainer=traced"]
        overrides = [f"strategy={strategy}", *JOBS["C"], *shared, *SETTINGS.get(strategy, ()), *more]
        config = composed([*overrides, f"strategy.rounds={arguments.rounds}"])
        recipe = Recipe(config)
        self.backend = SerialBackend()
        self.worker = recipe.worker(recipe.data(), threads=1, device="cpu")
        self.initial = self.worker.model.vector.clone()
        self.backend.start(self.worker, recipe)
        first = self.worker.strategy.initialize(self.initial, self.worker.model.layout)
        self.worker.rehearse(*self.worker.strategy.plan(first, self.worker.data.sizes, 0, self.worker.model.layout))
        self.state: ServerState | None = None
        self(rounds=1)  # records, compiles, prepares samples

    def __call__(self, rounds: int | None = None) -> tuple[float, float, float]:
        """Train; the medians of processor and wall seconds a round, and the accuracy after the last."""
        gc.collect()
        strategy, layout, laps = self.worker.strategy, self.worker.model.layout, Laps()
        state = strategy.initialize(self.initial, layout)
        if rounds is not None:
            state = replace(state, round=strategy.rounds - rounds)
        fit = {"backend": self.backend, "layout": layout, "seed": self.worker.seed}
        _, history = strategy.fit(state, callbacks=Callbacks([laps]), **fit)
        own, wall = (statistics.median(column) for column in zip(*laps.seconds, strict=True))
        return own, wall, history[-1].metrics.get("test/accuracy", float("nan"))

    def turn(self) -> float:
        """Processor seconds of a round whose clients have the memory that the turn before has left them."""
        strategy, laps = self.worker.strategy, Laps()
        first = replace(strategy.initialize(self.initial, self.worker.model.layout), round=strategy.rounds - 1)
        self.state, _ = strategy.fit(
            first if self.state is None else replace(first, memory=self.state.memory),
            backend=self.backend,
            layout=self.worker.model.layout,
            seed=self.worker.seed,
            callbacks=Callbacks([laps]),
        )
        return laps.seconds[-1][0]


class Taking(Protocol):
    """What takes turns."""

    def turn(self) -> float:
        """Processor seconds of a round."""


def in_turns(side: Taking, reference: Taking, turns: int) -> tuple[float, float, str]:
    """Median seconds a round of a side, median ratio to a reference's, and where the middle half of the ratios is.

    The two take turns after every round, so that what changes the machine's speed meets both; the first is left out.
    """
    both: dict[Taking, list[float]] = {side: [], reference: []}
    for turn in range(turns + 1):
        for one in (side, reference) if turn % 2 == 0 else (reference, side):
            both[one].append(one.turn())
    own, others = both[side][1:], both[reference][1:]
    ratios = sorted(a / b for a, b in zip(own, others, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return statistics.median(own), statistics.median(ratios), f"{low:.2f} to {high:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    machine = f"{processor()}, {os.cpu_count()} CPUs, torch {torch.__version__}, one thread"
    print(f"{date}, {machine}; {options.rounds} rounds, {options.repetitions} repetitions")
    peers = "".join(f" {peer} / flrl |" for peer in options.peers)
    print(f"| strategy | s a round | (wall) | / FedAvg | min to max | accuracy |{peers}")
    print("|---|---:|---:|---:|---:|---:|" + "---:|" * len(options.peers))
    rows: list[dict[str, Any]] = []
    reference = Side(REFERENCE, options)
    for name in options.only or STRATEGIES:
        rows.append(row_of(name, reference, options))
        print(shown(rows[-1], options.peers), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        report = {"date": date, "processor": processor(), "torch": torch.__version__, "rows": rows}
        options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {options.output}")


def parsed(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STRATEGIES, metavar="name", help="strategies; all by default")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of each side in a repetition")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="installed by `benchmarks.peers.run`")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers", help="of the peers")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where MNIST is, or is put")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a peer is given up")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/strategies.json")
    options = parser.parse_args(arguments)
    if min(options.repetitions, options.rounds) < 1:
        parser.error("--repetitions and --rounds must be at least 1")
    return options


def row_of(name: str, reference: Side, options: Namespace) -> dict[str, Any]:
    """All that is measured of a strategy, or why it is not."""
    try:
        side = reference if name == REFERENCE else Side(name, options)
    except (ValueError, TypeError) as error:
        return {"strategy": name, "refused": str(error).splitlines()[0]}
    own, beside = [], []
    peers: dict[str, Any] = {peer: [] for peer in options.peers if peer in AT_PEERS.get(name, ())}
    for repetition in range(options.repetitions):
        for both in (own, beside) if repetition % 2 == 0 else (beside, own):
            both.append((side if both is own else reference)())
        for peer, ratios in peers.items():
            if isinstance(ratios, list):
                found = measured(Run(peer, "C", 1, name), options)
                if "error" in found:
                    peers[peer] = found["error"][-300:]
                else:
                    ratios.append(statistics.median(found["processor_seconds"]) / side()[0])
    ratios = [mine[0] / other[0] for mine, other in zip(own, beside, strict=True)]
    seconds, wall, accuracy = (statistics.median(column) for column in zip(*own, strict=True))
    found = {p: statistics.median(r) if isinstance(r, list) else f"failed: {r}" for p, r in peers.items()}
    row = {"strategy": name, "seconds": seconds, "wall": wall, "accuracy": accuracy, "peers": found}
    return row | {"ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def shown(row: dict[str, Any], peers: Sequence[str]) -> str:
    """A row of the table in Markdown."""
    if "refused" in row:
        return f"| `{row['strategy']}` | | | refused: {row['refused']} | | |" + " |" * len(peers)
    cells = [f"{row['seconds']:.3f}", f"({row['wall']:.3f})", f"{row['ratio']:.2f}"]
    cells += [f"{row['min']:.2f} to {row['max']:.2f}", f"{100 * row['accuracy']:.1f} %"]
    for peer in peers:
        found = row["peers"].get(peer, "")
        cells.append(f"{found:.2f}" if isinstance(found, float) else found[:6])
    return f"| `{row['strategy']}` | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
