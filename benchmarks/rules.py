"""Our rules beside those of ByzFL 0.0.11 on the same rows: that their values are the same, and the seconds of each.

    pip install byzfl==0.0.11    # in an environment of its own, with flrl
    python -m benchmarks.rules
    python -m benchmarks.rules --quick

Rows are a tensor or an array `[n, d]` of normal numbers, of which the last f are three times as long and shifted. flrl
computes in float64. ByzFL computes NumPy arrays in their dtype and torch tensors in float32, whatever theirs is; it is
timed on float64 arrays (the same numbers) and on float32 tensors (half the memory). Each side gets a fresh copy outside
of the time, since some of ByzFL's pre-aggregators change what they are given. Sides take turns; medians of repetitions.
Seconds are of processor time, wall time beside it: with one thread they are the same on a machine of one's own.
MDA bears one malicious row here, as ByzFL tries all subsets. Geometric medians take eight steps, flrl's from the
median, ByzFL's from zero.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.overhead import processor
from flrl.aggregation import (
    ARC,
    MDA,
    NNM,
    Before,
    Bucketing,
    CenteredClipping,
    Clip,
    GeometricMedian,
    Krum,
    Meamed,
    Median,
    MultiKrum,
    RowMean,
    Rows,
    TrimmedMean,
)

LARGEST_QUANTILE = 16_000_000
"""Numbers of which torch.quantile, with which ByzFL takes medians of tensors, refuses to take any."""


LARGEST_COPIES = 2**33
"""Bytes that ByzFL may take for copies of rows; it is not tried with more."""


@dataclass(frozen=True)
class Case:
    """One rule of both sides.

    Attributes:
        name: what it is called in the table.
        ours: called with float64 rows `[n, d]`.
        theirs: the name of ByzFL's class, and its settings.
        quantile: whether ByzFL needs torch.quantile for tensors.
        copies: how many times the rows' memory ByzFL takes, where that is much.
        same: whether both give the same values; else they draw random numbers.
    """

    name: str
    ours: Callable[[Tensor], Tensor]
    theirs: tuple[str, dict[str, Any]]
    quantile: bool = False
    copies: int = 1
    same: bool = True


def mixed(before: Before) -> Callable[[Tensor], Tensor]:
    """What a pre-aggregator alone makes of rows."""

    def call(values: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return before(Rows(values, torch.ones(len(values)).double(), range(len(values)), {}, generator)).values

    return call


def cases(count: int, f: int) -> list[Case]:
    """All rules that both sides have, for that many rows, f of them malicious."""
    return [
        Case("mean", RowMean(), ("Average", {})),
        Case("median", Median(), ("Median", {}), quantile=True),
        Case("trimmed_mean", TrimmedMean(num_malicious=f), ("TrMean", {"f": f})),
        Case("geometric_median", GeometricMedian(iterations=8), ("GeometricMedian", {"nu": 1e-6, "T": 8})),
        Case("krum", Krum(num_malicious=f), ("Krum", {"f": f})),
        Case("multi_krum", MultiKrum(num_malicious=f), ("MultiKrum", {"f": f})),
        Case("centered_clipping", CenteredClipping(radius=100.0), ("CenteredClipping", {"tau": 100.0})),
        Case("mda, f = 1", MDA(num_malicious=1), ("MDA", {"f": 1})),
        Case("meamed", Meamed(num_malicious=f), ("Meamed", {"f": f}), quantile=True),
        Case("before=nnm", mixed(NNM(num_malicious=f)), ("NNM", {"f": f}), copies=count - f),
        Case("before=bucketing", mixed(Bucketing(size=2)), ("Bucketing", {"s": 2}), same=False),
        Case("before=clip", mixed(Clip(max_norm=100.0)), ("Clipping", {"c": 100.0})),
        Case("before=arc", mixed(ARC(num_malicious=f)), ("ARC", {"f": f})),
    ]


def rows_of(count: int, size: int, f: int) -> np.ndarray:
    """The rows, float64 `[count, size]`."""
    rows = np.random.default_rng(0).standard_normal((count, size))
    rows[count - f :] = 3 * rows[count - f :] + 0.5
    return rows


def seconds(call: Callable[[Any], Any], given: Any) -> tuple[float, float, Any]:
    """The processor seconds of a call, its wall seconds, and its result."""
    wall, begun = time.perf_counter(), time.process_time()
    result = call(given)
    return time.process_time() - begun, time.perf_counter() - wall, result


def largest_difference(ours: Any, theirs: Any) -> float:
    """Of two results, relative to the largest number."""
    a, b = np.asarray(ours), np.asarray(theirs, dtype=np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def alone(case: Case, rows: np.ndarray, repetitions: int) -> str:
    """The seconds of flrl, where ByzFL would need more memory than there is."""
    spent = [seconds(case.ours, torch.from_numpy(rows.copy()))[:2] for _ in range(repetitions)]
    processor, wall = (statistics.median(column) for column in zip(*spent, strict=True))
    return f"{processor:.2f} ({wall:.2f})"


def measured(case: Case, rows: np.ndarray, repetitions: int) -> list[str]:
    """A row of the table."""
    import byzfl

    name, settings = case.theirs
    if case.copies * rows.nbytes > LARGEST_COPIES:
        return [case.name, f"`{name}`", alone(case, rows, repetitions), "out of memory", "out of memory", "", ""]
    sides: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
        "flrl": (case.ours, lambda: torch.from_numpy(rows.copy())),
        "float64": (lambda given: getattr(byzfl, name)(**settings)(given), rows.copy),
    }
    if not (case.quantile and rows.size > LARGEST_QUANTILE):
        sides["float32"] = (sides["float64"][0], lambda: torch.from_numpy(rows.astype(np.float32)))
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    results: dict[str, Any] = {}
    for _ in range(repetitions):
        for side, (call, given) in sides.items():
            results[side] = None  # so that its memory is free
            processor, wall, results[side] = seconds(call, given())
            times[side].append((processor, wall))
    medians = {side: [statistics.median(column) for column in zip(*own, strict=True)] for side, own in times.items()}
    difference = largest_difference(results["flrl"], results["float64"])
    assert not case.same or difference < 1e-5, f"{case.name}: {difference:.1e} apart"
    cells = {side: f"{processor:.2f} ({wall:.2f})" for side, (processor, wall) in medians.items()}
    ratios = [f"{medians[side][0] / medians['flrl'][0]:.1f}" for side in medians if side != "flrl"]
    return [
        case.name,
        f"`{name}`",
        cells["flrl"],
        cells["float64"],
        cells.get("float32", "refused"),
        " / ".join(ratios),
        f"{difference:.0e}" if case.same else "drawn",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--malicious", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of rules")
    parser.add_argument("--quick", action="store_true", help="rows of 10,000 numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    size = 10_000 if options.quick else options.size
    machine = f"{processor()}, torch {torch.__version__}, torch.set_num_threads({options.threads})"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, rows {options.rows} x {size:,}")
    print("| rule | ByzFL's | flrl, s | ByzFL float64, s | ByzFL float32, s | theirs / flrl | difference |")
    print("|---|---|---:|---:|---:|---:|---:|")
    rows = rows_of(options.rows, size, options.malicious)
    RowMean()(np.zeros((2, 2**22)))  # loops are compiled outside of the times
    for case in cases(options.rows, options.malicious):
        if options.only is None or case.name in options.only:
            print(f"| {' | '.join(measured(case, rows, options.repetitions))} |", flush=True)


if __name__ == "__main__":
    main()
