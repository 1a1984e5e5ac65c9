"""Writes what an attack has found into the run's folder and to W&B: numbers, pictures, a table of several attacks."""

import csv
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from flrl.attacks.base import Finding, Observation
from flrl.attacks.observe import Truth
from flrl.attacks.pictures import comparison_figure, grid_figure
from flrl.attacks.scoring import numbers_of
from flrl.logging.wandb import FlrlWandbLogger
from flrl.runs.rows import replace_text

RESULT = "result.json"
_COLUMNS = ("mse", "psnr", "ssim", "label_accuracy", "auc", "tpr_at_fpr_0.01")


def figures_of(finding: Finding, truth: Truth, observation: Observation, title: str) -> dict[str, Figure]:
    """The pictures of a finding by their files' names: `reconstruction`, and those that the attack gives itself."""
    figures = {"reconstruction": comparison_figure(finding, truth, observation.inputs, title)}
    figures |= {name: grid_figure(pictures, f"{title}: {name}") for name, pictures in finding.pictures.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def write(folder: Path, where: str, result: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Write into `<folder>/<where>/`; copies in the folder itself are always the newest result."""
    (folder / where).mkdir(parents=True, exist_ok=True)
    for old in [*(folder / where).glob("*.png"), *folder.glob("*.png")]:
        old.unlink()
    flat = {**{name: value for name, value in result.items() if name != "scores"}, **result["scores"]}
    replace_text(folder / where / RESULT, [json.dumps(_finite(flat), indent=2) + "\n"])
    for name, figure in figures.items():
        figure.savefig(folder / where / f"{name}.png", dpi=150)
    for path in (folder / where).iterdir():
        shutil.copyfile(path, folder / path.name)


def write_table(folder: Path, where: str, about: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Write `result.json` and `result.csv` of several attacks, as `write` does.

    Args:
        folder: where to.
        where: the round and the client, as the name of a folder.
        about: what all results have in common.
        whole: the attacks' results by name.
    """
    (folder / where).mkdir(parents=True, exist_ok=True)
    rows = {
        name: {
            **result.get("scores", {}),
            **{k: result[k] for k in ("seconds", "not_applied", "failed") if k in result},
        }
        for name, result in whole.items()
    }
    result = {**about, "attacks": rows}
    replace_text(folder / where / RESULT, [json.dumps(_finite(result), indent=2) + "\n"])
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    with (folder / where / "result.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["attack", *names])
        writer.writeheader()
        writer.writerows({"attack": name, **row} for name, row in rows.items())
    for path in (folder / where).iterdir():
        shutil.copyfile(path, folder / path.name)


def table(whole: Mapping[str, Any]) -> Table:
    """The most important numbers of several attacks, for the terminal."""
    columns = [key for key in _COLUMNS if any(key in result.get("scores", {}) for result in whole.values())]
    shown_table = Table("attack", *columns, "seconds")
    for name, result in whole.items():
        if "seconds" in result:
            cells = [shown(result["scores"][key]) if key in result["scores"] else "" for key in columns]
            shown_table.add_row(name, *cells, shown(result["seconds"]))
    return shown_table


def shown(value: Any) -> str:
    """A number of a result, for the terminal."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    """The value with null for all numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def log(settings: Mapping[str, Any], folder: Path, result: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Log a result's numbers and pictures to W&B, as a run of its own.

    Args:
        settings: project, name, group, tags and `offline`, as for `FlrlWandbLogger`.
        folder: the result's folder.
        result: the result.
        figures: pictures by name.
    """
    import wandb

    logger = FlrlWandbLogger(
        save_dir=str(folder),
        project=settings["project"],
        name=f"{settings['name']}-{result['attack']}-{folder.name}",
        group=settings["group"],
        job_type="attack",
        tags=[*settings["tags"], "attack", result["attack"]],
        offline=settings["offline"],
    )
    try:
        logger.log_hyperparams({key: result[key] for key in ("attack", "round", "client", "seed", "settings")})
        numbers = {f"attack/{key}": value for key, value in numbers_of(result["scores"]).items()}
        pictures = {f"attack/{key}": wandb.Image(figure) for key, figure in figures.items()}
        logger.experiment.log({**numbers, "attack/seconds": result["seconds"], **pictures})
    finally:
        logger.finish()


def is_wandb(node: Mapping[str, Any]) -> bool:
    """Whether the configuration of a logger is that of a W&B logger."""
    return str(node.get("_target_", "")).endswith("WandbLogger")
