"""Runs made by hand, with the files that `flrl.results` reads."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flrl.results import Run

MakeRun = Callable[..., Run]


def write_run(
    folder: Path,
    values: Sequence[float | None],
    *,
    seed: int = 0,
    strategy: str = "fedavg",
    metric: str = "test/accuracy",
    finished: bool = True,
    overrides: Sequence[str] = (),
    **config: Any,
) -> Run:
    """A run with the given values of a metric after rounds 1, 2, ..., each of which costs 100 + 200 bytes and 0.5 s."""
    (folder / ".hydra").mkdir(parents=True)
    whole = {"seed": seed, "strategy": {"_target_": strategy, "rounds": len(values)}, "paths": {"out": str(folder)}}
    (folder / ".hydra" / "config.yaml").write_text(json.dumps({**whole, **config}))
    given = [f"strategy={strategy}", f"seed={seed}", *overrides]
    row = {"after_round": 0, "choices": {"strategy": strategy, "partition": "iid"}, "overrides": given}
    (folder / "environments.jsonl").write_text(json.dumps(row) + "\n")
    spent = {"comm/up_bytes": 100, "comm/down_bytes": 200, "time/round_s": 0.5}
    rows = [
        {"round": round, **({} if value is None else {metric: value}), **spent, "digest": f"{seed}-{round}"}
        for round, value in enumerate(values, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"seed": seed, "rounds": len(values)}))
    return Run(folder)


@pytest.fixture
def make(tmp_path: Path) -> MakeRun:
    """`make(values, seed=1, ...)` writes the next job of a sweep."""
    jobs = iter(range(100))

    def next_job(*arguments: Any, **options: Any) -> Run:
        return write_run(tmp_path / "sweep" / str(next(jobs)), *arguments, **options)

    return next_job


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures: they take most of a comparison's time."""
    monkeypatch.setattr("flrl.results.figures.write", lambda *arguments: None)


@pytest.fixture
def sweep(make: MakeRun, tmp_path: Path) -> Path:
    """Two strategies with three seeds: 0.80, 0.82, 0.87 beside 0.81, 0.85, 0.89."""
    for seed, (one, other) in enumerate([(0.80, 0.81), (0.82, 0.85), (0.87, 0.89)]):
        make([0.5, one], seed=seed)
        make([0.6, other], seed=seed, strategy="fedprox")
    return tmp_path / "sweep"
