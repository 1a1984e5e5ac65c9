"""Trains a job twice with every engine in this process, and prints digests as JSON; started by `benchmarks.gpu`."""

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.jobs import Settings, config, federation
from benchmarks.gpu.rounds import engines
from benchmarks.overhead import ROOT

_NO_SUCH = " does not have a deterministic implementation"


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    data = None if asked["data"] is None else Path(asked["data"])
    settings = Settings(asked["device"], asked["quick"], data, 1, asked["rounds"], ROOT / ".peers")
    if asked["deterministic"]:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    found: dict[str, Any] = {}
    eager: torch.Tensor | None = None
    with contextlib.redirect_stdout(sys.stderr):
        for name, overrides in engines(settings, asked["job"], fewer=settings.quick).items():
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    runs = []
                    for _ in range(2):
                        with federation(config(settings, asked["job"], *overrides), settings.device) as side:
                            runs.append(side())
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
                continue
            vector = runs[0]["vector"]
            eager = vector if eager is None else eager
            undetermined = [str(word.message) for word in caught if _NO_SUCH in str(word.message)]
            found[name] = {
                "digests": [run["digest"] for run in runs],
                "difference": float((vector - eager).abs().max()),
                "warned": sorted({text.split(_NO_SUCH)[0] for text in undetermined}),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
