"""What compressors cost and save: a round of job C with each beside plain FedAvg, and accuracy against bytes.

    python -m benchmarks.compression
    python -m benchmarks.compression --only top_k drive --turns 60
    python -m benchmarks.compression --parts accuracy

Cost: job C of `benchmarks.run` (the 2NN of 199,210 numbers, 1,000 clients of 60 images of MNIST, 100 a round, one
thread). A compressor and plain FedAvg take turns after every round; what counts is the median over turns of the ratio
of their processor seconds. Clients have taken part before: whoever keeps an error has one. Bytes are those of an
update.

Accuracy: scikit-learn's digits, 20 clients of a Dirichlet partition, 5 a round with 5 epochs, a 2NN of 55,210 numbers,
30 rounds; means over seeds.
"""

import argparse
import os
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

import flrl
from benchmarks.overhead import ROOT, processor
from benchmarks.strategies import REFERENCE, Side, in_turns

CHOICES: dict[str, tuple[str, ...]] = {
    "none": (),
    "cast": (),
    "int8": (),
    "int4": (),
    "qsgd": (),
    "terngrad": (),
    "sign": (),
    "ef_sign": (),
    "drive": (),
    "eden": (),
    "top_k": ("strategy.transforms.top_k.share=0.01",),
    "random_k": ("strategy.transforms.random_k.share=0.1",),
    "threshold": ("strategy.transforms.threshold.threshold=0.005",),
    "power_sgd": (),
    "gradient_pruning": ("strategy.transforms.gradient_pruning.share=0.1",),
    "[downlink,int8]": (),
}
TARGET = 0.9


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("cost", "accuracy"), default=["cost", "accuracy"])
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="name")
    parser.add_argument("--turns", type=int, default=30, help="rounds of each side")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where MNIST is, or is put")
    options = parser.parse_args(arguments)
    if min(options.turns, options.seeds) < 1:
        parser.error("--turns and --seeds must be at least 1")
    options.rounds = 1
    torch.set_num_threads(1)
    machine = f"{processor()}, {os.cpu_count()} CPUs, torch {torch.__version__}, one thread"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}")
    if "cost" in options.parts:
        cost(options)
    if "accuracy" in options.parts:
        accuracy(options)


def cost(options: Namespace) -> None:
    """The table of seconds."""
    print("| `strategy/transforms` | s a round | / plain | half of the turns |\n|---|---:|---:|---:|")
    plain = Side(REFERENCE, options)
    for name in options.only:
        if name == "none":
            continue
        side = Side(REFERENCE, options, f"strategy/transforms={name}", *CHOICES[name])
        seconds, ratio, spread = in_turns(side, plain, options.turns)
        print(f"| `{name}` | {seconds:.3f} | {ratio:.2f} | {spread} |", flush=True)


def accuracy(options: Namespace) -> None:
    """The table of bytes and accuracies."""
    print("| `strategy/transforms` | bytes up | of plain | bytes down | accuracy | rounds | MB up to 90 % |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    plain = 0.0
    for name in dict.fromkeys(["none", *options.only]):
        rows = [trained(name, seed) for seed in range(options.seeds)]
        up, down, last, rounds, spent = (statistics.fmean(column) for column in zip(*rows, strict=True))
        plain = plain or up
        print(
            f"| `{name}` | {up:,.0f} | {up / plain:.3f} | {down:,.0f} | {100 * last:.1f} % | {rounds:.1f} | "
            f"{spent / 1e6:.3f} |",
            flush=True,
        )


def trained(name: str, seed: int) -> tuple[float, float, float, float, float]:
    """Bytes of an update and of a model, the last accuracy, rounds to the target, and bytes sent up until it."""
    with tempfile.TemporaryDirectory() as folder:
        run = flrl.train(
            "dataset=digits", "model=mlp_2nn", "partition=dirichlet", "partition.num_clients=20", "logger=none",
            "callbacks=none", "strategy.rounds=30", "strategy.sampler.num=5", "model.optimizer.lr=0.2",
            "trainer.local_epochs=5", f"strategy/transforms={name}", f"seed={seed}", *CHOICES[name],
            f"hydra.run.dir={folder}/run",
        )  # fmt: skip
        rows = run.metrics[run.metrics["comm/up_bytes"].notna()]
    up, there = rows["comm/up_bytes"], rows["test/accuracy"] >= TARGET
    rounds = float(there.to_numpy().argmax() + 1) if there.any() else float("nan")
    spent = float(up.iloc[: int(rounds)].sum()) if there.any() else float("nan")
    return (
        float(up.mean()) / 5,
        float(rows["comm/down_bytes"].mean()) / 5,
        float(rows["test/accuracy"].iloc[-1]),
        rounds,
        spent,
    )


if __name__ == "__main__":
    main()
