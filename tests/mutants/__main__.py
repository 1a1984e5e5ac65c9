"""Tries the mutants, all or those that a word occurs in: `python -m tests.mutants`, `python -m tests.mutants scaffold`.

A line for each, `killed` or `SURVIVED`, then the share of those killed; ends with 1 where that is too small.
"""

import argparse
import sys

from tests.mutants.campaign import run
from tests.mutants.table import mutants

LEAST = 0.95
"""Share of the mutants that the tests have to notice."""


def main(words: list[str]) -> int:
    """Try the mutants that any of the words occurs in, or all; the exit code."""
    chosen = [m for m in mutants() if not words or any(word in f"{m.file}: {m.name}" for word in words)]
    survivors = []
    for outcome in run(chosen):
        mutant = outcome.mutant
        survivors += [] if outcome.killed else [mutant]
        how = "killed  " if outcome.killed else "SURVIVED"
        print(f"{how}  {outcome.seconds:5.1f} s  {mutant.file}: {mutant.name}", flush=True)
    killed = len(chosen) - len(survivors)
    print(f"{killed} of {len(chosen)} mutants killed")
    for mutant in survivors:
        print(f"  survived: {mutant.file}: {mutant.name}: {mutant.old} ==> {mutant.new}")
    return 0 if killed >= LEAST * len(chosen) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="word", help="of a file or a mutant's name")
    sys.exit(main(parser.parse_args().words))
