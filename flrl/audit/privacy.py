"""The privacy audit: what a run promises beside what attacks achieve, as rows of one table."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve
from torch import Tensor

from flrl.attack_run import attacked, observed_client
from flrl.attacks.base import Attack, Observation
from flrl.attacks.observe import Truth, observe
from flrl.attacks.scoring import membership
from flrl.audit.audited import GUESSES, RATES, SEEN, UPPER, Audited, Curve, Row, Settings, Stated
from flrl.audit.canary_scores import SEES, Scored, canaries_of
from flrl.audit.lower_bounds import LowerBound, covers, many_runs, one_run
from flrl.backends.serial import SerialBackend
from flrl.errors import FlrlError
from flrl.evaluate_run import saved_config
from flrl.recorded import SavedRun
from flrl.replay import Replay, replaying
from flrl.runs.rows import METRICS, read_rows

SUMMARY = "summary.json"
_SCORES = ("auc", "tpr_at_fpr_0.01", "label_accuracy", "mse", "psnr", "ssim")
_REASONS = (ValueError, FlrlError, FileNotFoundError)


def audit(setting: str, folders: Sequence[Path], settings: Settings) -> Audited:
    """Audit finished runs that differ by their seeds alone; attacks look into the first of them.

    Args:
        setting: what they have in common, as a name.
        folders: the runs' folders, one or more.
        settings: what is audited.

    Raises:
        FileNotFoundError: there is no run in a folder.
        ValueError: a run has not finished.
    """
    configs = [saved_config(folder, settings.data_dir) for folder in folders]
    summaries = [_summary(folder, config) for folder, config in zip(folders, configs, strict=True)]
    stated = stated_of(folders, summaries, settings)
    found = Audited([{"part": UPPER, "number": "epsilon", **_promised(stated)}], [], [])
    scored: dict[str, list[Scored]] = {}
    try:
        for folder, config in zip(folders, configs, strict=True):
            released = None if settings.released == "last" else _Released(folder, config)
            for canaries in canaries_of(folder, config, released):
                scored.setdefault(canaries.unit, []).append(canaries)
                found.canaries.extend(_coins(folder, canaries))
        missing = "no canaries: train with adversary=client_canaries or dataset=digits_canaries"
    except _REASONS as error:
        scored, missing = {}, str(error)
    if not scored:
        found.rows.extend({"part": part, "missing": missing} for part in (GUESSES, RATES, SEEN))
    for unit, canaries_of_runs in scored.items():
        _bounds(found, unit, canaries_of_runs, stated, settings, setting)
    if settings.attacks:
        _attacks(found, folders[0], configs[0], settings, setting)
    rows = [{"setting": setting, **row} for row in found.rows]
    return Audited(rows, found.curves, [{"setting": setting, **row} for row in found.canaries])


# What is promised.


def stated_of(folders: Sequence[Path], summaries: Sequence[Row], settings: Settings) -> Stated:
    """The largest upper bound that runs state, or that of the settings."""
    if settings.epsilon is not None:
        return Stated(settings.epsilon, settings.delta, settings.unit)
    found = [_own(folder, summary, settings) for folder, summary in zip(folders, summaries, strict=True)]
    without = [each for each in found if each.epsilon is None]
    return without[0] if without else max(found, key=lambda each: each.epsilon or 0.0)


def _own(folder: Path, summary: Row, settings: Settings) -> Stated:
    """What a run states: in the section `privacy` of its summary, else in the last row that has an epsilon."""
    section = summary.get("privacy") or {}
    if section.get("epsilon") is not None:
        return Stated(float(section["epsilon"]), float(section["delta"]), str(section.get("unit", "client")))
    rows = [row for row in read_rows(folder / METRICS) if row.get("privacy/epsilon") is not None]
    if section or not rows:
        return Stated(None, settings.delta, settings.unit)
    return Stated(float(rows[-1]["privacy/epsilon"]), float(rows[-1]["privacy/delta"]), settings.unit)


def _promised(stated: Stated) -> Row:
    if stated.epsilon is None:
        return {"missing": "no bound stated"}
    sees = f"anyone who sees all that was released and knows all data but one {stated.unit}'s"
    return {"value": stated.epsilon, "delta": stated.delta, "unit": stated.unit, "sees": sees}


# What canaries show.


def _bounds(
    found: Audited, unit: str, canaries: Sequence[Scored], stated: Stated, settings: Settings, setting: str
) -> None:
    sees = SEES["client" if unit == "client" else "sample"]
    about = {"delta": stated.delta, "confidence": settings.confidence}
    scores, included = [each.scores for each in canaries], [each.included for each in canaries]
    pooled = one_run(scores, included, shares=settings.guesses, **about)
    found.rows.append({"part": GUESSES, **_bounded(pooled, unit, stated), "sees": sees})
    alike = len({len(each) for each in scores}) == 1
    if len(scores) < 4 or not alike:
        few = f"{len(scores)} run{'s' * (len(scores) != 1)}: needs at least 4, with other seeds, below one folder"
        missing = few if alike else "runs have other numbers of canaries"
        found.rows.append({"part": RATES, "number": "epsilon", "unit": unit, "missing": missing})
    else:
        many = many_runs(np.stack(scores), np.stack(included), **about)
        found.rows.append({"part": RATES, **_bounded(many, unit, stated), "sees": sees})
    values, coins = np.concatenate(scores), np.concatenate(included)
    if not 0 < coins.sum() < len(coins):
        found.rows.append({"part": SEEN, "unit": unit, "missing": "all coins are alike"})
        return
    numbers = membership(values, coins, seed=settings.seed)
    found.rows.extend({**row, "unit": unit, "runs": len(scores), "sees": sees} for row in _numbers(SEEN, numbers))
    found.curves.append(_curve(setting, f"{unit} canaries", values, coins))


def _bounded(bound: LowerBound, unit: str, stated: Stated) -> Row:
    verdict = covers(stated.epsilon, bound.epsilon)
    if stated.epsilon is not None and stated.unit != unit:
        verdict = f"not compared: the stated bound is for one {stated.unit}, the canaries are {unit}s"
    return {
        "number": "epsilon",
        "value": bound.epsilon,
        "confidence": bound.confidence,
        "delta": bound.delta,
        "unit": unit,
        "runs": bound.runs,
        "canaries": bound.canaries,
        "guesses": bound.guesses,
        "correct": bound.correct,
        "verdict": verdict,
    }


def _coins(folder: Path, canaries: Scored) -> list[Row]:
    each = zip(canaries.ids.tolist(), canaries.included.tolist(), canaries.scores.tolist(), strict=True)
    run = {"run": str(folder), "unit": canaries.unit}
    return [{**run, "id": id, "included": included, "score": score} for id, included, score in each]


class _Released:
    """The models after all rounds of a run, recomputed."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config

    def __call__(self) -> list[Tensor]:
        run = SavedRun.read(self._folder, self._config)
        with replaying(run, _backend(self._config)) as replay:
            return [replay.model_before(round + 1) for round in sorted(run.recorded.digests)]


# What attacks show.


def _attacks(found: Audited, folder: Path, config: Mapping[str, Any], settings: Settings, setting: str) -> None:
    try:
        run = SavedRun.read(folder, config)
        last = max(run.recorded.digests)
        round = last if settings.round is None else settings.round
        if round > last:
            raise ValueError(f"round={round}: {folder} holds rounds 1 to {last}")
        with replaying(run, _backend(config)) as replay:
            client = _observed(replay, round, settings.client)
            about = {"seed": settings.seed, "num_candidates": settings.candidates, "device": settings.device}
            observation, truth = observe(replay, round, client, **about)  # type: ignore[arg-type]
            for name, attack in settings.attacks.items():
                _attack(found, name, attack, observation, truth, setting)
    except _REASONS as error:
        there = {row["part"] for row in found.rows}
        found.rows.extend({"part": name, "missing": str(error)} for name in settings.attacks if name not in there)


def _attack(found: Audited, name: str, attack: Attack, observation: Observation, truth: Truth, setting: str) -> None:
    finding, result = attacked(attack, observation, truth, lambda share, text: None, name, isolated=True)
    if finding is None:
        missing = result.get("not_applied") or result.get("failed")
        found.rows.append({"part": name, "sees": attack.knows, "missing": missing})
        return
    found.rows.extend({**row, "runs": 1, "sees": attack.knows} for row in _numbers(name, result["scores"]))
    if finding.scores is not None:
        found.curves.append(_curve(setting, name, finding.scores.numpy(), truth.members))


def _observed(replay: Replay, round: int, client: int | None) -> int | None:
    """The observed client; None, the mean over the cohort, where transforms hide single updates."""
    if any(part.hides_updates for part in replay.worker.strategy.transforms.values()):
        return None
    if client is None:
        honest = [each for each in replay.cohort(round) if each not in replay.worker.threat.clients]
        client = honest[0] if honest else None
    return observed_client(replay, round, client)


def _numbers(part: str, scores: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name in _SCORES:
        if name in scores:
            low, high = scores.get(f"{name}_interval", (None, None))
            row = {"part": part, "number": name, "value": float(scores[name])}
            rows.append(row if low is None else {**row, "low": low, "high": high, "confidence": 0.95})
    return rows


def _curve(setting: str, name: str, scores: np.ndarray, members: np.ndarray) -> Curve:
    false, true, _ = roc_curve(members, scores)
    return Curve(setting, name, false, true)


def _backend(config: Mapping[str, Any]) -> SerialBackend:
    had = config["backend"]
    return SerialBackend(
        threads=had.get("threads", 1), device=had.get("device", "cpu"), portable=had.get("portable", False)
    )


def _summary(folder: Path, config: Mapping[str, Any]) -> Row:
    path = folder / SUMMARY
    if not path.exists():
        done = max((row["round"] for row in read_rows(folder / METRICS)), default=0)
        rounds = config["strategy"]["rounds"]
        raise ValueError(
            f"run={folder}: the run has not finished (round {done} of {rounds}): resume={folder} goes on with it"
        )
    found: Row = json.loads(path.read_text())
    return found
