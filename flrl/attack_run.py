"""Recomputes a round of a finished run, attacks what was on the wire, scores the result and writes it down."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich import progress as bars
from rich.console import Console

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.observe import Truth, observe
from flrl.attacks.results import figures_of, is_wandb, log, shown, table, write, write_table
from flrl.attacks.scoring import score
from flrl.backends.serial import SerialBackend
from flrl.cli.instantiation import make
from flrl.config import CONF_DIR
from flrl.errors import FlrlError
from flrl.evaluate_run import saved_config
from flrl.process_setup import check_settings
from flrl.recorded import SavedRun
from flrl.replay import Replay, replaying
from flrl.runs.environment import versions

ALL = "all"
SUMS = ("all", "sum")


def attack_run(cfg: DictConfig, *, choice: str) -> dict[str, Any]:
    """Attack as configured by `conf/attack.yaml`; prints the result, and returns the content of `result.json`.

    Args:
        cfg: the configuration.
        choice: the attack's name, or all for several ones, whose settings are in `cfg.attack` by name.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: a setting is invalid, the attack does not apply, or the run's files are damaged.
        FlrlError: what is recomputed is not what the run has recorded.
    """
    folder = Path(cfg.run)
    config = saved_config(folder, cfg.data_dir)
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "logger"])
    settings: dict[str, Any] = OmegaConf.to_container(own, resolve=True)  # type: ignore[assignment]
    attacks, wandb = _attacks(settings, choice), _wandb(cfg.logger, config)
    _check(settings)
    run = SavedRun.read(folder, config)
    round = _round(run, cfg.round)
    had = config["backend"]
    backend = SerialBackend(
        threads=had.get("threads", 1), device=had.get("device", "cpu"), portable=had.get("portable", False)
    )
    console = Console(highlight=False, soft_wrap=True)
    with replaying(run, backend) as replay:
        client = observed_client(replay, round, cfg.client)
        observation, truth = observe(
            replay, round, client, seed=cfg.seed, num_candidates=cfg.candidates, device=cfg.device
        )
        about = _about(observation, settings)
        where = f"{round}-{'sum' if client is None else client}"
        with _bar(console) as progress:
            results = {
                name: attacked(attack, observation, truth, progress, name, isolated=choice == ALL)
                for name, attack in attacks.items()
            }
    console.print(f"{folder}  round {round}  {_seen(observation)}")
    whole = {}
    for name, (finding, result) in results.items():
        settings_of = settings["attack"] if "_target_" in settings["attack"] else settings["attack"][name]
        whole[name] = {"attack": name, **result, **about, "settings": settings_of}
        if finding is None:
            continue
        figures = figures_of(finding, truth, observation, f"{name}, round {round}, {_seen(observation)}")
        write(folder / "attacks" / name, where, whole[name], figures)
        if wandb is not None:
            log(wandb, folder / "attacks" / name / where, whole[name], figures)
    if choice == ALL:
        write_table(folder / "attacks" / ALL, where, about, whole)
        _show_all(console, folder, whole)
        return whole
    console.print("  ".join(f"{name} {shown(value)}" for name, value in results[choice][1]["scores"].items()))
    console.print(f"folder  {folder / 'attacks' / choice / where}")
    return whole[choice]


def _show_all(console: Console, folder: Path, whole: Mapping[str, Any]) -> None:
    """Print the results of several attacks; FlrlError if some have failed, with the reasons."""
    console.print(table(whole))
    for name, result in whole.items():
        if "not_applied" in result:
            console.print(f"{name}: {result['not_applied']}")
    console.print(f"folder  {folder / 'attacks'}")
    failed = [f"attack={name} failed: {result['failed']}" for name, result in whole.items() if "failed" in result]
    if failed:
        raise FlrlError("; ".join(failed))


# Settings.


def _attacks(settings: Mapping[str, Any], choice: str) -> dict[str, Attack]:
    """The attacks by name: the one that was chosen, or several."""
    chosen = settings["attack"]
    if not chosen:
        choices = ", ".join(sorted(path.stem for path in (CONF_DIR / "attack").glob("*.yaml")))
        raise ValueError(f"attack=: choose one of {choices}")
    if "_target_" in chosen:
        return {choice: _made(settings, "attack")}
    return {name: _made({f"attack.{name}": node}, f"attack.{name}") for name, node in chosen.items()}


def _made(settings: Mapping[str, Any], key: str) -> Attack:
    if not isinstance(settings[key], Mapping) or "_target_" not in settings[key]:
        raise ValueError(f"{key}={settings[key]}: must name an attack with _target_")
    attack = make(settings, key)
    if not isinstance(attack, Attack):
        raise ValueError(f"{key}: {type(attack).__name__} is no flrl.attacks.Attack")
    return attack


def _wandb(logger: DictConfig | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of the W&B logger: the chosen one, else the run's; None for no W&B."""
    had = [node for node in (config.get("logger") or {}).values() if node and is_wandb(node)]
    named = {"name": config["name"], "group": config["name"], "tags": [], **(had[0] if had else {})}
    if logger is None:
        return named if had else None
    chosen: dict[str, Any] = OmegaConf.to_container(logger, resolve=False)  # type: ignore[assignment]
    others = [name for name, node in chosen.items() if not is_wandb(node)]
    if others:
        raise ValueError(f"logger={others[0]}: attacks are logged to W&B alone: logger=wandb or logger=wandb_offline")
    return {"project": node["project"], **named, "offline": node["offline"]} if (node := chosen.get("wandb")) else None


def _check(settings: Mapping[str, Any]) -> None:
    client = settings["client"]
    whole = isinstance(client, int) and not isinstance(client, bool) and client >= 0
    if not (client is None or whole or client in SUMS):
        raise ValueError(f"client={client}: must be a client's id, all (or sum), or null")
    if settings["candidates"] < 1:
        raise ValueError(f"candidates={settings['candidates']}: must be at least 1")
    if settings["seed"] < 0:
        raise ValueError(f"seed={settings['seed']}: must be at least 0")
    check_settings(1, settings["device"], "device")


def _round(run: SavedRun, round: int | None) -> int:
    last = max(run.recorded.digests)
    if round is not None and not 1 <= round <= last:
        raise ValueError(f"round={round}: {run.folder} holds rounds 1 to {last}")
    return last if round is None else round


def observed_client(replay: Replay, round: int, client: int | str | None) -> int | None:
    """The observed client; None for the mean over the cohort, which alone is seen of updates that are hidden.

    Raises:
        ValueError: the client's update is hidden, or nobody took part in the round.
    """
    if client in SUMS:
        return None
    hiding = [name for name, part in replay.worker.strategy.transforms.items() if part.hides_updates]
    if hiding:
        raise ValueError(
            f"strategy.transforms.{hiding[0]}: hides what each client sends, only their sum is seen: client=all"
        )
    if client is None:
        cohort = replay.cohort(round)
        sent = replay.run.recorded.details.get(round, {}).get("clients", {})
        there = [client_id for client_id in cohort if sent.get(str(client_id), "recorded")]
        if not there:
            raise ValueError(f"round={round}: nobody took part in it, or sent anything")
        return there[0]
    return int(client)


# Attacks.


def attacked(
    attack: Attack, observation: Observation, truth: Truth, progress: Progress, name: str, *, isolated: bool
) -> tuple[Finding | None, dict[str, Any]]:
    """What an attack has found, and its part of the result.

    Args:
        attack: the attack.
        observation: what it is given.
        truth: what its finding is scored by.
        progress: called now and then.
        name: the attack's name.
        isolated: it is one of several: that it does not apply, or fails, is in the result.

    Raises:
        ValueError: it does not apply, unless it is one of several.
    """
    about = {"threat_model": attack.knows, "paper": attack.source}
    objection = attack.objection(observation)
    if objection is not None and not isolated:
        raise ValueError(f"attack={name}: {objection}")
    if objection is not None:
        return None, {**about, "not_applied": objection}
    started = time.perf_counter()
    try:
        finding = attack.find(observation, lambda share, text: progress(share, f"{name}  {text}"))
    except Exception as error:
        if not isolated:
            raise
        return None, {**about, "failed": f"{type(error).__name__}: {error}"}  # named when all have been tried
    seconds = round(time.perf_counter() - started, 3)
    scores = score(finding, truth, observation.inputs, seed=observation.seed) | dict(finding.numbers)
    return finding, {**about, "scores": scores, "seconds": seconds}


def _about(observation: Observation, settings: Mapping[str, Any]) -> dict[str, Any]:
    single = len(observation.clients) == 1 and settings["client"] not in SUMS
    return {
        "seed": observation.seed,
        "round": observation.round,
        "client": observation.clients[0] if single else "all",
        "clients": list(observation.clients),
        "num_samples": observation.num_samples,
        "num_steps": observation.local.num_steps(observation.num_samples) if single else None,
        "device": observation.device,
        "versions": versions(),
    }


def _seen(observation: Observation) -> str:
    if len(observation.clients) == 1:
        return f"client {observation.clients[0]}"
    return f"mean over {len(observation.clients)} clients"


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    """A progress bar, if the output is a terminal."""
    if not console.is_terminal:
        yield lambda share, text: None
        return
    columns = (bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeElapsedColumn())
    with bars.Progress(*columns, bars.TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text)
