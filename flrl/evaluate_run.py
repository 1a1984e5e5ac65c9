"""Loads a finished run and evaluates its model, on the central test set and on each client's samples."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file

from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.evaluation import Evaluator, summarize_clients
from flrl.process_setup import prepare
from flrl.recipe import Recipe
from flrl.runs.checkpoint import checkpoint_path, list_checkpoints, load_checkpoint
from flrl.runs.integrity import MODEL, PARTITION, check_checkpoint, check_files
from flrl.runs.rows import METRICS, read_rows
from flrl.runs.saved import read_config
from flrl.trainers.problem import PERSONAL
from flrl.types import Tensors

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
    model = prepare(recipe.module(), threads=cfg.threads, device=cfg.device, personal=recipe.strategy().personal)
    check_files(folder, model.layout)
    data = recipe.data()
    check_partition(folder, data)
    source = _load(model, folder, cfg.round)
    evaluator = Evaluator(batch_size=cfg.batch_size)
    result: dict[str, Any] = {"model": source, "central": evaluator.central(model, data)}
    if cfg.clients:
        chosen = data.holding_out().tolist()
        held_out = bool(chosen)
        chosen = chosen or list(range(data.num_clients))
        memory = _client_memory(model, folder, cfg.round)
        rows = [_client(evaluator, model, data, client, memory, train=not held_out) for client in chosen]
        result["samples"] = "held out" if held_out else "training"
        result["clients"] = summarize_clients(rows)
        result["per_client"] = [
            {"client_id": c} | row | {"num_samples": int(row["num_samples"])}
            for c, row in zip(chosen, rows, strict=True)
        ]
    (folder / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    _show(result, folder)
    return result


def _client(
    evaluator: Evaluator,
    model: BoundModel,
    data: FederatedData,
    client: int,
    memory: Mapping[int, Tensors],
    *,
    train: bool,
) -> dict[str, float]:
    """One client's metrics, for the model with the client's personal part if there is one."""
    if model.layout.personal:
        model.load(model.local_vector(model.vector.clone(), memory.get(client, {}).get(PERSONAL)))
    return evaluator.client(model, data, client, train=train)


def _client_memory(model: BoundModel, folder: Path, round: int | None) -> Mapping[int, Tensors]:
    """The client memory of the evaluated model's round; empty for a model without a personal part.

    Raises:
        FileNotFoundError: there is no checkpoint of that round.
    """
    if not model.layout.personal:
        return {}
    rows = [row["round"] for row in read_rows(folder / METRICS)]
    path = checkpoint_path(folder, max(rows, default=0) if round is None else round)
    if not path.exists():
        raise FileNotFoundError(f"clients=true: {path} is missing, in which the clients' personal parameters are")
    return load_checkpoint(path, {"model": model.layout.fingerprint}).memory


def _load(model: BoundModel, folder: Path, round: int | None) -> str:
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
        raise FileNotFoundError(f"{path} is missing: the run has not finished; choose a checkpoint with round=...")
    try:
        model.module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be loaded into the run's model: {error}") from error
    return path.name


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
    statistics = ("mean", "weighted_mean", "std", "worst10")
    names = sorted(
        {
            name.removeprefix("clients/").rsplit("_mean", 1)[0]
            for name in result["clients"]
            if name.endswith("_weighted_mean")
        }
    )
    names = [name.removesuffix("_weighted") for name in names]
    table = Table("metric", *statistics, title=f"{len(result['per_client'])} clients, {result['samples']} samples")
    for name in names:
        table.add_row(name, *(f"{result['clients'][f'clients/{name}_{s}']:.4f}" for s in statistics))
    console.print(table)
    keys = [key for key in result["per_client"][0] if key not in ("client_id", "num_samples")]
    table = Table("client", "samples", *keys)
    for row in result["per_client"][:SHOWN_CLIENTS]:
        table.add_row(str(row["client_id"]), str(row["num_samples"]), *(f"{row[key]:.4f}" for key in keys))
    console.print(table)
    if len(result["per_client"]) > SHOWN_CLIENTS:
        console.print(f"... and {len(result['per_client']) - SHOWN_CLIENTS} more, in {folder / 'evaluation.json'}")
