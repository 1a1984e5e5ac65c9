"""Seconds and bytes of a round of secure aggregation, with all neighbours and with few (SecAgg+).

    python -m benchmarks.secagg
    python -m benchmarks.secagg --clients 1000 --numbers 10000 --lost 0.05
    python -m benchmarks.secagg --flower /path/to/python    # an environment of its own, with pip install flwr

Each client masks two words of 64 bits a number; keys, shares and unmasking are the controller's. Clients are divided
over processes, as `backend=process` does; sides take turns; medians of repetitions. With `--flower` the time in which
Flower draws as many masks for one client is printed beside that of ours: 32 bits a number, from NumPy's generator with
a seed of 32 bits.
"""

import argparse
import statistics
import subprocess
import time
from multiprocessing import get_context
from multiprocessing.pool import Pool

import numpy as np

from benchmarks.overhead import processor
from flrl.secagg import MaskedSum, Session

Side = tuple[int | str | None, int]
"""Neighbours, and processes."""
SIDES: dict[str, Side] = {
    "all neighbours, 1 process": (None, 1),
    "all neighbours, 2 processes": (None, 2),
    "few neighbours, 1 process": ("auto", 1),
    "few neighbours, 2 processes": ("auto", 2),
}
FLOWER = """
import sys, time, statistics
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
neighbours, numbers = int(sys.argv[1]), int(sys.argv[2])
def once():
    started = time.perf_counter()
    for seed in range(neighbours + 1):
        pseudo_rand_gen(seed.to_bytes(32, "little"), 1 << 32, [(numbers,)])
    return time.perf_counter() - started
print(statistics.median(once() for _ in range(5)))
"""


def masked(session: Session, clients: list[int]) -> tuple[MaskedSum, float]:
    """The sum of some clients' masked vectors, as a worker adds it up, and its seconds of processor time."""
    started = time.process_time()
    found, words = MaskedSum(session.round, session.size), np.arange(session.size, dtype=np.uint64)
    for client in clients:
        found.add(session.masking(client).input(words.copy()))
    return found, time.process_time() - started


def timed(session: Session, pool: Pool | None, processes: int) -> tuple[float, ...]:
    """Seconds of masking and of all else, those of processor time of both, bytes up and down."""
    clients = sorted(session.heard["masked_input"])
    started = time.perf_counter()
    shares = [(session, clients[place::processes]) for place in range(processes)]
    parts = pool.starmap(masked, shares) if pool is not None else [masked(*shares[0])]
    whole = parts[0][0]
    for other, _ in parts[1:]:
        whole.merge(other.clients, other.words)
    between, own = time.perf_counter(), time.process_time()
    words, traffic = session.unmask(whole)
    rest, rest_own = time.perf_counter() - between, time.process_time() - own
    assert np.array_equal(words, np.arange(session.size, dtype=np.uint64) * np.uint64(len(clients)))
    up, down = (sum(sum(c.values()) for c in way.values()) for way in (traffic.up, traffic.down))
    return between - started, rest, sum(seconds for _, seconds in parts), rest_own, up, down


def main(arguments: list[str] | None = None) -> None:
    """Print a table of the sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--numbers", type=int, default=200_000)
    parser.add_argument("--lost", type=float, default=0.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--few", action="store_true", help="leave out the sides with all neighbours")
    parser.add_argument("--flower")
    options = parser.parse_args(arguments)
    sides = {name: side for name, side in SIDES.items() if side[0] is not None or not options.few}
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in sides}
    with get_context("spawn").Pool(2) as pool:
        for round in range(1, options.repetitions + 1):
            for name, (neighbours, processes) in sides.items():
                session = Session(
                    seed=0,
                    round=round,
                    clients=range(options.clients),
                    size=2 * options.numbers,
                    neighbours=neighbours,
                    dropouts={"masked_input": options.lost},
                )
                times[name].append(timed(session, pool if processes > 1 else None, processes))
    print(f"{processor()}; {options.clients} clients, {options.numbers} numbers, {options.lost:.0%} lost\n")
    print("| side | neighbours | masking s (processor s) | the rest s (processor s) | MB up | MB down |")
    print("|---|---|---|---|---|---|")
    for name, found in times.items():
        masking, rest, own, rest_own, up, down = (statistics.median(column) for column in zip(*found, strict=True))
        degree = Session(0, 1, range(options.clients), 2, neighbours=sides[name][0]).graph.degree
        seconds = f"{masking:.2f} ({own:.2f}) | {rest:.2f} ({rest_own:.2f})"
        print(f"| {name} | {degree} | {seconds} | {up / 1e6:.1f} | {down / 1e6:.2f} |")
    if options.flower:
        degree = Session(0, 1, range(options.clients), 2).graph.degree
        command = [options.flower, "-c", FLOWER, str(degree), str(options.numbers)]
        theirs = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        session = Session(0, 1, range(options.clients), 2 * options.numbers)
        ours = []
        for client in range(5):
            masking, words = session.masking(client), np.zeros(session.size, np.uint64)
            started = time.perf_counter()
            masking.input(words)
            ours.append(time.perf_counter() - started)
        print(f"\none client's {degree + 1} masks: Flower {theirs:.3f} s, flrl {statistics.median(ours):.3f} s")


if __name__ == "__main__":
    main()
