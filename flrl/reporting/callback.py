"""Writes the report at the end of a run."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flrl.callbacks.base import Callback, RunInfo
from flrl.reporting.folder import RunFiles
from flrl.reporting.html import write_page
from flrl.reporting.index import REPORT
from flrl.reporting.page import run_page
from flrl.reporting.predicted import Predicted, predict
from flrl.types import RoundRecord, ServerState

log = logging.getLogger(__name__)


class Report(Callback):
    """Writes `report.html` into the run's folder after the last round; what goes wrong there is a warning.

    Args:
        seconds: how long half of the predictions may take; the page says of how many samples there are any.

    Raises:
        ValueError: `seconds` is negative.
    """

    def __init__(self, *, seconds: float = 1.0) -> None:
        if not seconds >= 0:
            raise ValueError(f"report.seconds={seconds}: must be at least 0")
        self.seconds = seconds
        self._run: RunInfo

    def setup(self, run: RunInfo) -> None:
        """Note the run."""
        self._run = run

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Write the report."""
        run, before = self._run, self._run.model.local.clone()
        try:
            run.model.load(state.vector.to(before.device))
            predicted = predict(run.model, run.data, seed=run.seed, seconds=self.seconds, round=state.round)
            write_report(run.folder, predicted)
        except Exception as error:  # the run has its result, whatever becomes of the page
            log.warning("%s is not written: %s: %s", REPORT, type(error).__name__, " ".join(str(error).split()))
        finally:
            run.model.load(before)


def write_report(folder: Path, predicted: Predicted | None, references: Sequence[tuple[str, RunFiles]] = ()) -> Path:
    """Write the report of the run in a folder; arguments as for `run_page`. Returns its path.

    Raises:
        OSError: there is no run, or the page cannot be written.
        ValueError: the run's files are damaged, or hold no round.
    """
    run = RunFiles.read(folder)
    write_page(folder / REPORT, run_page(run, predicted, [*references, *_centralised(run)]))
    return folder / REPORT


def _centralised(run: RunFiles) -> list[tuple[str, RunFiles]]:
    """The run of the same sweep that trains on all data in one place, with this run's dataset and seed."""
    if not (run.folder.parent / "multirun.yaml").exists() or _is_central(run.config):
        return []
    for path in sorted(run.folder.parent.glob("*/summary.json")):
        other = RunFiles.read(path.parent)
        same = all(other.config.get(key) == run.config.get(key) for key in ("seed", "dataset"))
        if _is_central(other.config) and same:
            return [(f"centralised, {path.parent.name} of this sweep", other)]
    return []


def _is_central(config: Mapping[str, Any]) -> bool:
    return str((config.get("strategy") or {}).get("_target_", "")).endswith(".Centralized")
