"""Recomputes rounds of a run, or one client's training, and compares the results with those in the run's folder."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from flrl.cli.instantiation import make
from flrl.evaluate_run import saved_config
from flrl.recorded import Recorded, SavedRun
from flrl.replay import Replay, replaying
from flrl.runs.environment import differences, environment
from flrl.runs.rows import ENVIRONMENTS, read_rows


def verify_run(cfg: DictConfig) -> bool:
    """Verify as configured by `conf/verify.yaml`; prints the result, and returns whether everything is the same.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the run's files are damaged or do not match each other or its data, or a setting is invalid.
    """
    folder = Path(cfg.run)
    config = saved_config(folder, cfg.data_dir)
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    backend = make(settings, "backend")
    run = SavedRun.read(folder, config)
    rounds = _chosen(run.recorded, cfg.rounds, cfg.client, cfg.round)
    console = Console(highlight=False, soft_wrap=True)
    with replaying(run, backend) as replay:
        start = replay.start(rounds.start)
        _warn(console, config["backend"], backend)
        for name, transform in replay.worker.strategy.transforms.items():
            if not transform.repeatable:
                console.print(f"note      strategy.transforms.{name}: sums have random errors: expect other digests")
        _warn_of_environment(console, folder, config, rounds)
        state = replay.advance(start, rounds.stop - 1 if cfg.client is None else rounds.start - 1)
        if cfg.client is not None and not replay.comparison.differences:
            _compare_client(replay, cfg.client, *replay.batch_of(replay.sent(state), cfg.client))
    if replay.comparison.differences:
        for line in replay.comparison.differences:
            console.print(line)
        return False
    what = f"rounds {rounds.start} to {rounds.stop - 1}: every digest is" if cfg.client is None else ""
    what = what or f"client {cfg.client} in round {cfg.round}: its update is"
    console.print(f"verified  {folder}  {what} the same")
    return True


def _compare_client(replay: Replay, client: int, broadcast: Any, batch: Any) -> None:
    """Train a client batch on the replay's backend, and compare the client's checksum."""
    reports = replay.backend.train(broadcast, batch, lambda report: None).reports
    checksums = {report.client_id: report.checksum for report in reports}
    replay.comparison.client(broadcast.step, client, checksums[client])


def _chosen(recorded: Recorded, rounds: str | None, client: int | None, round: int | None) -> range:
    """The rounds to compare, from the settings `rounds` ("3" or "3..5"), `client` and `round`.

    Raises:
        ValueError: the settings are invalid, or the run does not have these rounds.
    """
    if (client is None) != (round is None) or (client is not None and rounds is not None):
        raise ValueError("client and round come together, and without rounds: client=17 round=3")
    text = str(round) if round is not None else rounds
    if text is None:
        return range(1, max(recorded.digests) + 1)
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if found is None:
        raise ValueError(f"rounds={text}: must be one round, 3, or several, 3..5")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= max(recorded.digests):
        name = "rounds" if round is None else "round"
        raise ValueError(f"{name}={text}: {recorded.folder} holds rounds 1 to {max(recorded.digests)}")
    return range(first, last + 1)


def _warn(console: Console, had: Mapping[str, Any], backend: Any) -> None:
    for name in ("threads", "device", "portable"):
        there, here = had.get(name, False), getattr(backend, name, False)
        if str(there) != str(here):
            console.print(f"note      the run had backend.{name}={there}, this is {here}: expect other bits")


def _warn_of_environment(console: Console, folder: Path, config: Mapping[str, Any], rounds: range) -> None:
    """Print differences to the environment in which the verified rounds were trained."""
    rows = list(read_rows(folder / ENVIRONMENTS))  # earlier versions of flrl have not written this file
    ends = [*(row["after_round"] for row in rows[1:]), math.inf]
    trained = [
        row
        for row, end in zip(rows, ends, strict=False)
        if row["after_round"] + 1 < rounds.stop and end >= rounds.start
    ]
    now = environment(config) if trained else {}
    for line in dict.fromkeys(line for row in trained for line in differences(row, now)):
        console.print(f"note      {line}")
