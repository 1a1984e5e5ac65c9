"""Loads a finished run and evaluates its model, on the central test set and on each client's samples."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from flrl.bound_model import BoundModel
from flrl.cli.instantiation import make
from flrl.data import FederatedData
from flrl.evaluation import Evaluator, short_name
from flrl.examiner import EvaluationShare, Examiner, Rows
from flrl.recipe import Recipe
from flrl.rounds import initial_state
from flrl.runs.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint
from flrl.runs.integrity import MODEL, PARTITION, check_checkpoint, check_files, missing_model
from flrl.runs.rows import METRICS, read_rows
from flrl.runs.saved import read_config
from flrl.strategies import Strategy
from flrl.types import ServerState

SHOWN_CLIENTS = 20


def evaluate_run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as configured by `conf/evaluate.yaml`; returns the content of `evaluation.json`.

    Raises:
        FileNotFoundError: the run, its model or the checkpoint is missing.
        ValueError: the run's files are damaged or do not match each other or its data.
    """
    folder = Path(cfg.run)
    config = saved_config(folder, cfg.data_dir)
    recipe = Recipe(config)
    strategy = recipe.strategy()
    model, kinds = recipe.models(strategy, threads=cfg.threads, device=cfg.device)
    check_files(folder, model.layout)
    data = recipe.data()
    check_partition(folder, data)
    source = load_saved(model, folder, cfg.round)
    steps = config["evaluation"].get("finetune_steps", 0) if cfg.finetune_steps is None else cfg.finetune_steps
    evaluator = Evaluator(batch_size=cfg.batch_size, finetune_steps=steps)
    central = evaluator.central(model, data) if model.layout.size else {}
    result: dict[str, Any] = {"model": source, "central": central}
    if cfg.clients:
        chosen = data.holding_out().tolist()
        held_out = bool(chosen)
        chosen = chosen or list(range(data.num_clients))
        examiner = Examiner(model, data, evaluator, recipe.seeds.run, strategy, make(config, "trainer"), kinds=kinds)
        state = _state(model, strategy, folder, cfg.round, recipe.seeds.run)
        share = EvaluationShare(range(0), chosen)
        broadcast = examiner.broadcast(state.vector, state.round, examiner.variables(state, share))
        memory = examiner.memory(state, share)
        rows = {c: examiner.client(c, broadcast, memory.get(c, {}), train=not held_out) for c in chosen}
        result["samples"] = "held out" if held_out else "training"
        result["clients"] = examiner.summary(rows)
        result["per_client"] = [_row(client_id, models) for client_id, models in rows.items() if models]
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    _show(result, folder)
    return result


def _row(client_id: int, models: Rows) -> dict[str, Any]:
    """A client's row: `<model>/<metric>` of each of its models."""
    found: dict[str, Any] = {"client_id": client_id, "num_samples": int(next(iter(models.values()))["num_samples"])}
    for model, metrics in models.items():
        found |= {f"{model}/{short_name(name)}": value for name, value in metrics.items() if name != "num_samples"}
    return found


def _state(model: BoundModel, strategy: Strategy, folder: Path, round: int | None, seed: int) -> ServerState:
    """The state after the evaluated model's round, from its checkpoint, and with the model's vector.

    Without a checkpoint it has neither client memory nor variables, which some strategies' models need.

    Raises:
        FileNotFoundError: there is no checkpoint, and it is needed.
    """
    vector = model.vector.detach().cpu().clone()
    rows = [row["round"] for row in read_rows(folder / METRICS)]
    round = max(rows, default=0) if round is None else round
    path = checkpoint_path(folder, round)
    if path.exists():
        return replace(load_checkpoint(path, {"model": model.layout.fingerprint}), vector=vector)
    own = model.layout.personal or not strategy.sends_model
    if own or type(strategy).personal_model is not Strategy.personal_model:
        raise FileNotFoundError(f"clients=true: {path} is missing, in which what clients keep for themselves is")
    return replace(initial_state(strategy, vector, model.layout, seed), round=round)


def load_saved(model: BoundModel, folder: Path, round: int | None) -> str:
    """Load the final model, or a round's checkpoint; returns the file's name in the run's folder."""
    if round is not None:
        path = checkpoint_path(folder, round)
        if not path.exists():
            there = ", ".join(p.name for p in list_checkpoints(folder)) or "none"
            raise FileNotFoundError(f"round={round}: {folder} has no such checkpoint; there are: {there}")
        check_checkpoint(folder, path, model.layout)
        model.load(load_checkpoint(path, {"model": model.layout.fingerprint}).vector)
        return str(path.relative_to(folder))
    path = folder / MODEL
    if not path.exists():
        raise FileNotFoundError(f"{missing_model(folder)}; choose a checkpoint with round=...")
    load_weights(model.module, path)
    return path.name


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a run's final model into a module; ValueError if the file is damaged or of another model."""
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be loaded into the run's model: {error}") from error


def saved_config(folder: Path, data_dir: str | None) -> dict[str, Any]:
    """The configuration of the run in a folder, with another `data_dir` if that is given.

    Raises:
        FileNotFoundError: there is no run in the folder.
        DamagedError: its configuration cannot be read.
    """
    saved = folder / ".hydra" / "config.yaml"
    if not saved.exists():
        raise FileNotFoundError(f"run={folder}: there is no run in this folder ({saved} is missing)")
    config = read_config(saved)
    if data_dir is not None and "data_dir" in config["dataset"]:
        config["dataset"]["data_dir"] = data_dir
    return config


def check_partition(folder: Path, data: FederatedData) -> None:
    """Raise ValueError unless a run's saved partition is the one that its configuration gives now."""
    if not (folder / PARTITION).exists():
        raise FileNotFoundError(f"{folder / PARTITION} is missing: a run writes it before its first round")
    with np.load(folder / PARTITION) as saved:
        if str(saved["hash"]) != data.hash:
            raise ValueError(
                f"the partition of {folder} is not what its configuration gives today: is the data the same?"
            )


def _show(result: dict[str, Any], folder: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{folder / result['model']}")
    console.print("central test set  " + "  ".join(f"{n} {v:.4f}" for n, v in result["central"].items()))
    if "clients" not in result:
        return
    statistics = ("mean", "weighted_mean", "std", "worst10", "gini", "jain")
    ends = "_weighted_mean"
    names = sorted(name.removesuffix(ends) for name in result["clients"] if name.endswith(ends))
    metric = Column("metric", overflow="fold")
    table = Table(metric, *statistics, title=f"{len(result['per_client'])} clients, {result['samples']} samples")
    for name in names:
        values = (result["clients"].get(f"{name}_{statistic}") for statistic in statistics)
        table.add_row(name, *("" if value is None else f"{value:.4f}" for value in values))
    console.print(table)
    keys = list(dict.fromkeys(key for row in result["per_client"] for key in row))
    keys = [key for key in keys if key not in ("client_id", "num_samples")]
    table = Table("client", "samples", *keys)
    for row in result["per_client"][:SHOWN_CLIENTS]:
        values = (f"{row[key]:.4f}" if key in row else "" for key in keys)
        table.add_row(str(row["client_id"]), str(row["num_samples"]), *values)
    console.print(table)
    if len(result["per_client"]) > SHOWN_CLIENTS:
        console.print(f"... and {len(result['per_client']) - SHOWN_CLIENTS} more, in {folder / 'evaluation.json'}")
