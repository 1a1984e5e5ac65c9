"""What encrypted sums cost: bytes and seconds for each number, and the error of the sum; what integer noise costs.

    pip install 'flrl[he]'
    python -m benchmarks.encryption
    python -m benchmarks.encryption --quick

Ten clients encrypt normal numbers of standard deviation 0.01, as updates have them; ciphertexts are added, and the sum
is decrypted. Seconds are the processor's, of one thread, for 1,000 numbers. The error is the largest of the sum's
numbers, against the exact sum. The second table has the epsilon of integer noise by the bits of what clients send, at a
delta of 1e-5, for 100 rounds of 100 clients, 7,850 numbers and a noise multiplier of 4, beside that of Gaussian noise.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import numpy as np
import torch
from dp_accounting import SelfComposedDpEvent

from benchmarks.overhead import processor
from flrl.aggregation.exact_sum import ExactSum
from flrl.encryption import CkksKeyHolder, CkksScheme, PaillierKeyHolder, PaillierScheme
from flrl.encryption.ckks import error_bound
from flrl.privacy import epsilon, sampled_gaussian
from flrl.transforms import DistributedDiscreteGaussian, Skellam

CLIENTS = 10
Sides = tuple[Callable[[], Any], Callable[[Any], Any], str]


def paillier(key_bits: int) -> Sides:
    return (
        lambda: PaillierKeyHolder(key_bits=key_bits, addends=CLIENTS),
        lambda holder: PaillierScheme(holder.public, addends=CLIENTS),
        "0",
    )


def ckks(degree: int, scale_bits: int) -> Sides:
    return (
        lambda: CkksKeyHolder(degree=degree, scale_bits=scale_bits),
        lambda holder: CkksScheme(holder.public, degree=degree),
        f"{error_bound(degree, scale_bits, CLIENTS):.1e}",
    )


CASES: dict[str, tuple[Sides, int]] = {  # and how many numbers
    "paillier, key_bits=1024": (paillier(1024), 2_000),
    "paillier, key_bits=2048": (paillier(2048), 2_000),
    "paillier, key_bits=3072": (paillier(3072), 2_000),
    "ckks, poly_modulus_degree=4096, scale_bits=40": (ckks(4096, 40), 65_536),
    "ckks, poly_modulus_degree=8192, scale_bits=40": (ckks(8192, 40), 65_536),
    "ckks, poly_modulus_degree=8192, scale_bits=50": (ckks(8192, 50), 65_536),
    "ckks, poly_modulus_degree=16384, scale_bits=40": (ckks(16384, 40), 65_536),
}


def measured(sides: Sides, numbers: int) -> list[str]:
    """A row: bytes of a number, of the public key, seconds of 1,000 numbers in each step, error and its bound."""
    make, public_side, bound = sides
    vectors = torch.randn(CLIENTS, numbers, generator=torch.Generator().manual_seed(0)).double() * 0.01
    exact = ExactSum(numbers)
    for vector in vectors:
        exact.add(vector)
    holder = make()
    scheme = public_side(holder)
    alone = [ExactSum(numbers) for _ in vectors]
    for each, vector in zip(alone, vectors, strict=True):
        each.add(vector)
    times, sent = [time.process_time()], [scheme.encrypt(each.parts.numpy()) for each in alone]
    times.append(time.process_time())
    total = reduce(scheme.add, sent)
    times.append(time.process_time())
    high, low = holder.decrypt(total, numbers)
    times.append(time.process_time())
    encrypt, add, decrypt = np.diff(times) / numbers * 1000
    error = float(np.abs(high + low - exact.value().numpy()).max())
    nbytes = sum(map(len, sent[0])) / numbers
    shown = [f"{value:.2g}" for value in (encrypt / CLIENTS, add / (CLIENTS - 1), decrypt)]
    return [f"{nbytes:.1f}", f"{len(holder.public)}", *shown, f"{error:.1e}" if error else "0", bound]


def epsilons() -> list[str]:
    """Rows: bits, the noise of each client in integers, and epsilon of both kinds of integer noise."""
    size, clients, rounds, multiplier = 7_850, 100, 100, 4.0
    rows = []
    for bits in (8, 10, 12, 14, 16, 18):
        found = []
        for kind in (DistributedDiscreteGaussian, Skellam):
            transform = kind(clip=1.0, noise_multiplier=multiplier, bits=bits)
            grid = transform.grid(size, clients, multiplier)
            event = SelfComposedDpEvent(transform.event(grid), rounds)
            found.append(f"{epsilon(event, delta=1e-5, accountant='rdp'):.2f}")
        rows.append(f"| {bits} | {grid.deviation:.1f} | {' | '.join(found)} |")
    gaussian = epsilon(sampled_gaussian(multiplier, 1.0, rounds), delta=1e-5, accountant="rdp")
    return [*rows, f"| continuous | | {gaussian:.2f} | {gaussian:.2f} |"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few numbers, the smaller cases alone")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    print(f"{processor()}, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| bits | noise of a client | discrete Gaussian | Skellam |\n|---|---|---|---|")
    print("\n".join(epsilons()) + "\n")
    columns = ("bytes a number", "public key, bytes", "encrypt", "add", "decrypt", "error", "its bound")
    print(f"| scheme | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, (sides, numbers) in CASES.items():
        if quick and name not in ("paillier, key_bits=1024", "ckks, poly_modulus_degree=4096, scale_bits=40"):
            continue
        print(f"| {name} | {' | '.join(measured(sides, min(numbers, 100) if quick else numbers))} |", flush=True)


if __name__ == "__main__":
    main()
