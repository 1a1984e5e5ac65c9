"""A whole round of secure aggregation, flrl's and Flower's SecAgg+, in seconds of processor time.

    python -m benchmarks.peers.secagg
    python -m benchmarks.peers.secagg --clients 200 --numbers 10000 --repetitions 5

Every client has a fixed vector of float32 numbers, nobody trains, and nobody is lost; server and clients are in one
process a side, on one thread. Both sides have as many neighbours and the same threshold: flrl's defaults for so many
clients. Flower has an environment of its own under `.peers/`, made when it is missing. Sides take turns, each first in
every other repetition, after a round that does not count; numbers are medians.

flrl is there twice: with an object for every client and all messages as bytes, as deployed ends would exchange them,
and as a run simulates it (`strategy/transforms=secagg`). Both begin with float32 and end with the mean, checked to be
that of a round without masks to the bit. Flower's mean is checked against that too: stochastic rounding moves each
client's number by less than a step of its quantisation, and float32 by an eighth of one.

Not in Flower's seconds, but printed beside them: the turning of its messages into bytes and back, and FedAvg's mean of
as many copies of the result. flrl's messages are turned into bytes and back within its seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.overhead import ROOT, processor
from benchmarks.peers.run import install, python
from flrl.aggregation.base import stats_of
from flrl.aggregation.mean import MeanReducer
from flrl.secagg import Client, Secrets, Server, Session
from flrl.secagg.messages import KeyList, ShareList, UnmaskRequest
from flrl.transforms.masked_sum import MaskedReducer, integers, parts
from flrl.types import ClientUpdate

STAGES = ("keys", "shares", "masked vectors", "unmasking", "server")
WEIGHT = 1000.0
"""Of every client, as Flower's side has it."""
PEER = "flower_secagg"
Costs = dict[str, Any]
Side = Callable[[int], tuple[Costs, np.ndarray]]


def update_of(client: int, vectors: np.ndarray) -> ClientUpdate:
    """A client's result: flrl averages float64."""
    return ClientUpdate(client, WEIGHT, {"update": torch.from_numpy(vectors[client]).double()}, {}, 0)


def plain(vectors: np.ndarray) -> MeanReducer:
    """An empty exact mean of such vectors."""
    return MeanReducer({"update": vectors.shape[1]}, total_weight=WEIGHT * len(vectors))


def session_of(round: int, vectors: np.ndarray) -> Session:
    """A round with flrl's default settings: two words a number and two for the weight."""
    return Session(seed=0, round=round, clients=range(len(vectors)), size=2 * (vectors.shape[1] + 1))


def unmasked(vectors: np.ndarray) -> np.ndarray:
    """The mean without secure aggregation."""
    reducer = plain(vectors)
    for client in range(len(vectors)):
        update = update_of(client, vectors)
        reducer.add(update, stats_of(update))
    return reducer.result()[0]["update"].numpy()


def simulated(round: int, vectors: np.ndarray) -> tuple[Costs, np.ndarray]:
    """A round as a run has it."""
    started = time.process_time()
    reducer = MaskedReducer(plain(vectors), session_of(round, vectors))
    for client in range(len(vectors)):
        update = update_of(client, vectors)
        stats = stats_of(update)
        assert reducer.rejection(update, stats) is None
        reducer.add(update, stats)
    means, _ = reducer.result()
    return {"seconds": time.process_time() - started}, means["update"].numpy()


def exchanged(round: int, vectors: np.ndarray) -> tuple[Costs, np.ndarray]:
    """A round of two kinds of ends that are given each other's bytes alone."""
    begun = time.process_time()
    session, reducer = session_of(round, vectors), plain(vectors)
    graph, seconds, up, down = session.graph, dict.fromkeys(STAGES, 0.0), 0, 0
    server, inbox = Server(round=round, graph=graph, size=session.size), dict.fromkeys(graph.clients, b"")
    ends = {client: Client(client, round=round, graph=graph, secrets=Secrets.random()) for client in graph.clients}

    def masked(client: int, data: bytes) -> bytes:
        update, alone = update_of(client, vectors), MeanReducer(reducer.sizes, total_weight=1.0)
        alone.scale = reducer.scale
        alone.add(update, stats_of(update))
        return ends[client].masking(ShareList.decode(data)).input(integers(alone.sum.parts)).encode()

    answers: dict[str, Callable[[int, bytes], bytes]] = {
        "keys": lambda client, _: ends[client].advertise_keys().encode(),
        "shares": lambda client, data: ends[client].share_keys(KeyList.decode(data)).encode(),
        "masked vectors": masked,
        "unmasking": lambda client, data: ends[client].unmask(UnmaskRequest.decode(data)).encode(),
    }
    for stage, answer in answers.items():
        for client, data in inbox.items():
            started = time.process_time()
            sent = answer(client, data)
            seconds[stage] += time.process_time() - started
            up += len(sent)
            server.receive(sent)
        inbox = {client: message.encode() for client, message in server.next().items()}
        down += sum(map(len, inbox.values()))
    reducer.sum.parts = parts(server.sum())
    means, _ = reducer.result()
    seconds["server"] = time.process_time() - begun - sum(seconds.values())
    return {"stages": list(seconds.values()), "up": up, "down": down}, means["update"].numpy()


def flower(process: subprocess.Popen[str], mean: Path) -> tuple[Costs, np.ndarray]:
    """A round of Flower's."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"Flower's side ended with status {process.wait()}")
    return json.loads(line), np.load(mean)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--numbers", type=int, default=200_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers")
    parser.add_argument("--no-install", action="store_true", help="take the environment as it is")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Print what each side takes, and the ratio."""
    options = parse_arguments(arguments)
    environment = options.environments.resolve() / PEER
    if not options.no_install:
        install(PEER, environment)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 0.01, (options.clients, options.numbers)).astype(np.float32)
    graph, expected = session_of(1, vectors).graph, unmasked(vectors)
    with tempfile.TemporaryDirectory() as folder:
        stored, mean = Path(folder) / "vectors.npy", Path(folder) / "mean.npy"
        np.save(stored, vectors)
        command = [python(environment), Path(__file__).with_name(f"with_{PEER}.py"), "--vectors", stored]
        command += ["--shares", str(graph.degree + 1), "--threshold", str(graph.threshold), "--mean", mean]
        settings = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        process = subprocess.Popen(
            list(map(str, command)), env=settings, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with process:
            sides: dict[str, Side] = {
                "flrl": lambda round: exchanged(round, vectors),
                "flrl, simulated": lambda round: simulated(round, vectors),
                "Flower": lambda _: flower(process, mean),
            }
            found, errors = taken(sides, options.repetitions, expected)
    print(f"{processor()}; {options.clients} clients, {options.numbers} numbers", end="; ")
    print(f"{graph.degree} neighbours, threshold {graph.threshold}; Flower {found['Flower'][0]['version']}\n")
    report(found, errors)


def taken(
    sides: dict[str, Side], repetitions: int, expected: np.ndarray
) -> tuple[dict[str, list[Costs]], dict[str, float]]:
    """The costs of every repetition, and the largest error of any mean; both by side."""
    found: dict[str, list[Costs]] = {name: [] for name in sides}
    errors = dict.fromkeys(sides, 0.0)
    for repetition in range(repetitions + 1):
        for name in list(sides)[:: 1 if repetition % 2 else -1]:
            costs, mean = sides[name](repetition + 1)
            error = float(np.abs(mean - expected).max())
            assert error < 1.125 * costs.get("step", 0.0) if name == "Flower" else np.array_equal(mean, expected), error
            errors[name] = max(errors[name], error)
            if repetition:
                found[name].append(costs | {"seconds": costs.get("seconds") or sum(costs["stages"])})
    return found, errors


def report(found: dict[str, list[Costs]], errors: dict[str, float]) -> None:
    """A table of the stages, and what is beside it."""

    def median(name: str, key: str) -> float:
        return statistics.median(costs[key] for costs in found[name])

    print(f"| side | {' | '.join(STAGES)} | together (min to max) | MB up | MB down |")
    print(f"|---|{'---:|' * (len(STAGES) + 3)}")
    for name in ("flrl", "Flower"):
        stages = zip(*(costs["stages"] for costs in found[name]), strict=True)
        cells = [f"{statistics.median(stage):.2f}" for stage in stages]
        every = [costs["seconds"] for costs in found[name]]
        cells.append(f"{median(name, 'seconds'):.2f} ({min(every):.2f} to {max(every):.2f})")
        cells += [f"{median(name, 'up') / 1e6:.1f}", f"{median(name, 'down') / 1e6:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")
    theirs = median("Flower", "seconds")
    ours, run = median("flrl", "seconds"), median("flrl, simulated", "seconds")
    print(f"\nFlower's seconds are {theirs / ours:.1f} times flrl's", end="; ")
    print(f"as a run simulates it, flrl takes {run:.2f} s, and Flower {theirs / run:.1f} times that")
    print(f"beside Flower's: messages to bytes and back {median('Flower', 'transport'):.2f} s", end=", ")
    print(f"FedAvg's mean of copies {median('Flower', 'copies'):.2f} s")
    step = found["Flower"][0]["step"]
    print(f"largest error of a mean: flrl 0, Flower {errors['Flower']:.2g} (a step of its quantisation is {step:.2g})")


if __name__ == "__main__":
    main()
