"""A round of job C with a mechanism of differential privacy beside one without.

    python -m benchmarks.privacy
    python -m benchmarks.privacy --only dp dp_adaptive --repetitions 5
    python -m benchmarks.privacy --only dp --peers pfl    # installed by `python -m benchmarks.peers.run pfl`

Job C of `benchmarks.run`: the 2NN, 1,000 clients of 60 images of MNIST, about 100 a round by Poisson sampling, batches
of 10, `trainer=traced`, one thread, processor time, with the ledger's fsync. The two take turns after every round, with
the same cohort; the first ratio is the median over turns. In it the round's epsilon is known, as in most rounds of a
long run: a row's is computed anew (PLD) for every one of the first 16 rounds, later for every eighth more of them. The
second ratio is that of means over whole runs, with all of these and the exact one of the last round; it is a median
over repetitions. A peer's ratio is that of its processor time a round, with the same clip and noise, to flrl's.
"""

import argparse
import gc
import os
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.overhead import ROOT, processor
from benchmarks.peers.common import CLIP
from benchmarks.peers.run import Run, measured
from benchmarks.run import JOBS, composed
from benchmarks.strategies import Laps, in_turns
from flrl.backends import SerialBackend
from flrl.callbacks import Callback, Callbacks, PrivacyLedger
from flrl.privacy.ledger import Ledger
from flrl.recipe import Recipe

SIDES: dict[str, list[str]] = {
    "dp": ["strategy/transforms=dp"],
    "dp, per layer": ["strategy/transforms=dp", "strategy.transforms.dp.per_layer=true"],
    "dp, secure": ["strategy/transforms=dp", "privacy.secure_noise=true"],
    "dp_adaptive": ["strategy/transforms=dp_adaptive", "strategy.transforms.dp_adaptive.noise_multiplier=1"],
    "dp_ftrl": ["strategy/transforms=dp_ftrl", "strategy.transforms.dp_ftrl.sensitivity=4"],
    "dp_local": ["strategy/transforms=dp_local"],
}
NONE = "none"


class Charging(PrivacyLedger):
    """The ledger of a run, in a folder of its own."""

    def __init__(self, spending: Any, folder: Path) -> None:
        super().__init__(spending)
        self._ledger = Ledger.begun(folder, ())

    def on_fit_start(self, state: Any, history: Any) -> None:
        """Begin without a note on secure noise."""


class Side:
    """FedAvg on job C, from the same initial model every time."""

    def __init__(self, name: str, arguments: Namespace, folder: Path) -> None:
        own = [each for each in JOBS["C"] if "sampler" not in each and "rounds" not in each]
        sampler = ["strategy/sampler=poisson", "strategy.sampler.probability=0.1"]
        shared = ["logger=none", "paths.output_dir=.", f"paths.data_dir='{arguments.data}'", "trainer=traced"]
        rounds = f"strategy.rounds={arguments.rounds}"
        recipe = Recipe(composed([*own, *sampler, *shared, rounds, *SIDES.get(name, []), *_clip(name)]))
        data = recipe.data()
        self.spending, self.folder = recipe.spending(data), folder
        self.backend, self.worker = SerialBackend(), recipe.worker(data, threads=1, device="cpu")
        self.initial = self.worker.model.vector.clone()
        self.backend.start(self.worker, recipe)
        self()  # records, compiles, prepares samples, and the accountant its first distributions

    def __call__(self) -> float:
        """Train; the mean of processor seconds a round."""
        gc.collect()
        if self.spending is not None:
            self.spending._known.clear()  # every run computes the epsilon of its rounds
        laps = Laps()
        self._fit(laps, 0)
        seconds = [own for own, _ in laps.seconds]
        return statistics.fmean(seconds)

    def turn(self) -> float:
        """Processor seconds of the last round; its epsilon is known from the turn before."""
        laps = Laps()
        self._fit(laps, self.worker.strategy.rounds - 1)
        return laps.seconds[-1][0]

    def _fit(self, laps: Laps, round: int) -> None:
        strategy, layout = self.worker.strategy, self.worker.model.layout
        callbacks: list[Callback] = [laps]
        if self.spending is not None:
            callbacks.append(Charging(self.spending, self.folder))
        state = replace(strategy.initialize(self.initial, layout), round=round)
        strategy.fit(state, backend=self.backend, layout=layout, seed=self.worker.seed, callbacks=Callbacks(callbacks))


def _clip(name: str) -> list[str]:
    return [] if name == NONE else [f"strategy.transforms.{name.partition(',')[0]}.clip={CLIP}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SIDES, metavar="name", default=list(SIDES), help="mechanisms")
    parser.add_argument("--repetitions", type=int, default=3, help="of whole runs")
    parser.add_argument("--turns", type=int, default=30, help="rounds of each side, one by one")
    parser.add_argument("--rounds", type=int, default=40, help="of a whole run")
    parser.add_argument("--peers", nargs="*", choices=("pfl",), default=[], help="beside dp")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers", help="of the peers")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where MNIST is, or is put")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds after which a peer is given up")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    machine = f"{processor()}, {os.cpu_count()} CPUs, torch {torch.__version__}, one thread"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}; {options.rounds} rounds, {options.repetitions} repetitions")
    peers = "".join(f" {peer} / flrl |" for peer in options.peers)
    print(f"| mechanism | s a round | / none | half of the turns | run / none |{peers}")
    print("|---|---:|---:|---:|---:|" + "---:|" * len(options.peers))
    with tempfile.TemporaryDirectory() as folder:
        reference = Side(NONE, options, Path(folder))
        for name in options.only:
            side = Side(name, options, Path(folder))
            seconds, ratio, spread = in_turns(side, reference, options.turns)
            means = []
            beside: dict[str, list[float]] = {peer: [] for peer in options.peers if name == "dp"}
            for repetition in range(options.repetitions):
                found = {each: each() for each in [reference, side][:: 1 if repetition % 2 else -1]}
                means.append(found[side] / found[reference])
                for peer, of_peer in beside.items():
                    theirs = measured(Run(peer, "C", 1, name), options)
                    of_peer.append(statistics.median(theirs["processor_seconds"]) / seconds)
            cells = [f"{seconds:.3f}", f"{ratio:.3f}", spread, f"{statistics.median(means):.3f}"]
            cells += [f"{statistics.median(ratios):.2f}" for ratios in beside.values()]
            print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
