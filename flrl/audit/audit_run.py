"""Audits a run, or the runs below a folder, and writes and prints what is found."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Column, Table

from flrl.attacks.base import Attack
from flrl.audit.audited import COLUMNS, Audited, Row, Settings
from flrl.audit.leakage import attack_yaml
from flrl.audit.privacy import SUMMARY, audit
from flrl.audit.privacy_figures import bounds_figure, roc_figure
from flrl.cli.explaining import explained
from flrl.cli.instantiation import make
from flrl.process_setup import check_settings
from flrl.results import Run, runs
from flrl.runs.environment import versions
from flrl.runs.rows import replace_text
from flrl.sweeps import write_csv

FOLDER, RESULT, TABLE, CANARIES, BOUNDS, ROC = (
    "audit",
    "result.json",
    "result.csv",
    "canaries.csv",
    "bounds.png",
    "roc.png",
)
NOTHING = "no violation found"


def audit_run(cfg: DictConfig) -> dict[str, Any]:
    """Audit as configured by `conf/audit.yaml`; prints the table, and returns the content of `result.json`.

    Raises:
        FileNotFoundError: there is no run in the folder, nor below it.
        ValueError: a setting is invalid, or the run has not finished.
    """
    given: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    folder = Path(given.pop("run"))
    check_settings(1, given["device"], "device")
    nodes = {name: node for name, node in (given.pop("attacks") or {}).items() if node}
    settings = Settings(attacks=made(nodes, "attacks"), **given)
    return audit_folder(folder, settings, {**given, "attacks": nodes})


def made(nodes: Mapping[str, Any], key: str) -> dict[str, Attack]:
    """The attacks of configured nodes, by name; ValueError if one is no attack."""
    found = {}
    for name, node in nodes.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ValueError(f"{key}.{name}={node}: must name an attack with _target_")
        attack = make({f"{key}.{name}": node}, f"{key}.{name}")
        if not isinstance(attack, Attack):
            raise ValueError(f"{key}.{name}: {type(attack).__name__} is no flrl.attacks.Attack")
        found[name] = attack
    return found


def audit_folder(folder: Path, settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Audit the run in a folder, or each setting of the runs below it; writes `<folder>/audit/`.

    Args:
        folder: of a run, or of runs that differ by seeds and settings.
        settings: what is audited.
        given: the settings as they are written down.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run has not finished, or none below the folder has.
    """
    alone = (folder / ".hydra" / "config.yaml").exists()
    groups, left_out = ({folder.name: [folder]}, []) if alone or not folder.is_dir() else grouped(runs(folder))
    if not groups:
        raise ValueError(f"run={folder}: no run below this folder has finished")
    parts = [audit(name, folders, settings) for name, folders in groups.items()]
    rows = [row for part in parts for row in part.rows] + left_out
    whole = Audited(rows, [c for part in parts for c in part.curves], [c for part in parts for c in part.canaries])
    result = {
        "verdict": verdict_of(rows),
        "settings": dict(given),
        "runs": {name: [str(path) for path in folders] for name, folders in groups.items()},
        "versions": versions(),
        "rows": rows,
    }
    _write(folder / FOLDER, whole, result)
    _show(folder, rows)
    return result


def verdict_of(rows: Sequence[Row]) -> str:
    """All violations in a line, or that none was found; that no bound was tested where none was."""
    verdicts = [(row["setting"], str(row["verdict"])) for row in rows if row.get("verdict")]
    violations = [f"{setting}: {verdict}" for setting, verdict in verdicts if verdict.startswith("VIOLATION")]
    if violations:
        return "; ".join(violations)
    tested = any(verdict == NOTHING for _, verdict in verdicts)
    return NOTHING if tested else "no stated bound was tested"


# Several runs.


def grouped(found: Sequence[Run]) -> tuple[dict[str, list[Path]], list[Row]]:
    """The folders of finished runs by setting, which names what differs but seeds, and rows of the unfinished ones."""
    flat = {run.folder: _flat(run.config) for run in found}
    keys = dict.fromkeys(key for config in flat.values() for key in config)
    varied = [key for key in keys if len({repr(config.get(key)) for config in flat.values()}) > 1]
    groups: dict[str, list[Path]] = {}
    left_out: list[Row] = []
    for run in sorted(found, key=lambda run: [_ordered(flat[run.folder].get(key)) for key in varied]):
        config = flat[run.folder]
        name = ", ".join(f"{key.rpartition('.')[2]}={config[key]}" for key in varied if key in config) or "all runs"
        if (run.folder / SUMMARY).exists():
            groups.setdefault(name, []).append(run.folder)
        else:
            left_out.append({"setting": name, "part": "run", "missing": f"{run.folder}: has not finished"})
    return groups, left_out


def _ordered(value: Any) -> tuple[float, str]:
    """What values are sorted by: numbers by size, before all others."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (float(value) if number else math.inf, str(value))


_PLACES = ("paths", "resume", "tags", "name", "vars", "logger", "callbacks")


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a configuration by their whole keys, without seeds and where files are."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith("seed") or (not prefix and key in _PLACES):
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


# What is written.


def _write(folder: Path, found: Audited, result: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    replace_text(folder / RESULT, [json.dumps(_finite(result), indent=2) + "\n"])
    write_csv(folder / TABLE, found.rows, COLUMNS)
    (folder / CANARIES).unlink(missing_ok=True)
    if found.canaries:
        write_csv(folder / CANARIES, found.canaries)
    for name, figure in ((BOUNDS, bounds_figure(found.rows)), (ROC, roc_figure(found.curves))):
        (folder / name).unlink(missing_ok=True)
        if figure is not None:
            figure.savefig(folder / name, dpi=150)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(folder: Path, rows: Sequence[Row]) -> None:
    console = Console(highlight=False, soft_wrap=True, width=max(120, Console().width))
    table = Table("setting", "part", "number", "value", Column("about", overflow="fold"))
    for row in rows:
        value = "" if row.get("value") is None else f"{row['value']:.4g}"
        of = f", {row['unit']}s" if row.get("runs") and row.get("unit") else ""
        table.add_row(row["setting"], row["part"] + of, row.get("number") or "", value, _about(row))
    console.print(table)
    seen: dict[str, list[str]] = {}
    for row in rows:
        if row.get("sees") and row["part"] not in seen.setdefault(row["sees"], []):
            seen[row["sees"]].append(row["part"])
    for sees, parts in seen.items():
        console.print(f"{'; '.join(parts)}: {sees}")
    console.print(verdict_of(rows))
    console.print(f"folder  {folder / FOLDER}")


def _about(row: Row) -> str:
    """What is said of a number beside it."""
    if row.get("missing"):
        return str(row["missing"])
    parts = []
    if row.get("low") is not None:
        parts.append(f"({row['low']:.3f}, {row['high']:.3f})")
    elif row.get("guesses"):
        parts.append(f"{row['correct']} of {row['guesses']} guesses of {row['canaries']} {row['unit']} canaries right")
    if row.get("delta") is not None:
        parts.append(f"delta {row['delta']:g}")
    if row.get("confidence") is not None:
        parts.append(f"{100 * row['confidence']:g} %")
    return ", ".join([*parts, *([row["verdict"]] if row.get("verdict") else [])])


class PrivacyAudit(Callback):
    """A Hydra callback that audits the finished runs of a sweep after its last job.

    Args:
        attacks: names of choices of the group `attack`, which are made with the settings in their yamls.
        settings: the others of `flrl.audit.audited.Settings`.

    Raises:
        ValueError: a setting is invalid, or there is no attack of a name.
    """

    def __init__(self, *, attacks: Sequence[str], **settings: Any) -> None:
        with explained(full_error=False):
            key = "hydra.callbacks.privacy.attacks"
            nodes = {name: OmegaConf.to_container(OmegaConf.load(attack_yaml(name, key))) for name in attacks}
            self.settings = Settings(attacks=made(nodes, key), **settings)
        self.given = {**settings, "attacks": list(attacks)}

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Audit the sweep's folder."""
        with explained(full_error=False):
            audit_folder(Path(config.hydra.sweep.dir), self.settings, self.given)
