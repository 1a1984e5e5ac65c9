"""Weights & Biases: a run per job that a resume goes on with; tables, histograms, pictures, artifacts with lineage."""

import contextlib
import netrc
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from pytorch_lightning.loggers import WandbLogger

from flrl.callbacks.base import RunInfo
from flrl.config import lower_is_better
from flrl.logging.confusion import confusion
from flrl.logging.pictures import confusion_figure
from flrl.logging.secrets import masked_arguments
from flrl.logging.wandb_files import last_step, run_id
from flrl.records import evaluated
from flrl.runs.environment import own_files
from flrl.target import asked, reached, reaches
from flrl.types import ClientReport, RoundRecord, ServerState

MAX_CLIENTS = 200
"""Rows of a table of clients at most; histograms are of all clients."""
_BINS = 32
_HIGHER_IS_BETTER = ("accuracy", "acc", "f1", "auroc", "precision", "recall")


class FlrlWandbLogger(WandbLogger):
    """Lightning's W&B logger for a federation: a step is a round. It never prompts, and needs no account offline.

    Args:
        save_dir: folder in which the `wandb/` folder is made.
        project: W&B project.
        name: name of the run.
        group: runs of one group are shown together; a sweep is one.
        job_type: what the run does: train, attack.
        tags: tags of the run.
        target: the value of `optimized_metric` that the summary's `rounds_to_target` is of, see `flrl.target.reached`;
            null for the run's own target.
        offline: keep everything on disk; `wandb sync` sends it later.

    Raises:
        ValueError: online, but no API key is configured.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        project: str,
        name: str,
        group: str,
        tags: Sequence[str],
        offline: bool,
        job_type: str = "train",
        target: float | None = None,
        **options: Any,
    ) -> None:
        if not offline and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
            _require_key()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing phones home
        import wandb

        super().__init__(
            name=name,
            save_dir=save_dir,
            project=project,
            group=group,
            job_type=job_type,
            tags=list(tags),
            log_model=False,
            reinit="finish_previous",
            # Terminals' control characters are not for W&B; train.log has what is printed.
            settings=wandb.Settings(silent=True, console="off"),
            **options,
        )
        if offline:  # Lightning's own argument would set it for the whole process
            self._wandb_init["mode"] = "offline"
        self._wandb_init.pop("anonymous", None)  # wandb warns of Lightning's default
        self.target = target
        self._run: RunInfo
        self._logged = -1
        self._defined: set[str] = set()
        self._rows: list[dict[str, float]] = []
        self._reached = False

    @property
    def experiment(self) -> Any:
        """The W&B run, which begins with the first use."""
        if self._experiment is None:
            with _without_secrets():
                return super().experiment
        return self._experiment

    def log_start(self, run: RunInfo) -> None:
        """Begin the W&B run, or go on with that of a resumed run; log the partition and the user's own code."""
        import wandb

        self._run = run
        in_place = run.resumed_from is not None and run.resumed_from.resolve() == run.folder.resolve()
        earlier = run_id(run.folder) if in_place else None
        if earlier is not None and self._wandb_init["id"] is None and "WANDB_RUN_ID" not in os.environ:
            self._wandb_init["id"] = earlier
            self._logged = last_step(run.folder, earlier)
        experiment = self.experiment
        if not experiment.offline:
            self._logged = experiment.starting_step - 1
        experiment.define_metric("round")
        experiment.define_metric("*", step_metric="round")
        partition = self._artifact(f"partition-{run.data.hash[:12]}", "partition", [run.folder / "partition.npz"])
        if experiment.offline:  # using an artifact takes a server; the model's metadata name it
            experiment.log_artifact(partition)
        else:
            experiment.use_artifact(partition)
        if own := own_files():
            experiment.log_artifact(self._artifact(f"{run.name}-code", "code", own))
        picture = run.folder / "partition.png"
        if picture.exists() and self._logged < 0:
            experiment.log({"partition": wandb.Image(str(picture)), "round": 0}, step=0, commit=False)

    def log_round(self, state: ServerState | None, record: RoundRecord, numbers: Mapping[str, float]) -> None:
        """Log a round that is not in the W&B run yet: numbers, and after an evaluation its clients.

        Args:
            state: the state after it, if the round is the newest: the last one of a run gets the confusion matrix.
            record: the round.
            numbers: its metrics, those that are finite.
        """
        objective = self._run.config["optimized_metric"]
        self._note_target(record)
        if record.round <= self._logged:
            return
        names = evaluated(record)
        for name in (name for name in names if name not in self._defined):
            self._defined.add(name)
            if goal := _goal(name):
                self.experiment.define_metric(name, step_metric="round", summary=f"{goal},last")
        row: dict[str, Any] = {**numbers, "round": record.round}
        if objective in numbers:
            row["objective"] = numbers[objective]
        if names and record.reports:
            row |= _of_clients(record.reports)
        if state is not None and record.round == self._run.rounds:
            row |= self._confusion(state)
        self.experiment.log(row, step=record.round, commit=True)

    def log_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Log the final model as an artifact that names its partition."""
        run = self._run
        if state.round < run.rounds:  # stopped early: a step more would be in the way if the run is resumed
            self.experiment.summary.update(self._confusion(state))
        model = self._artifact(f"{run.name}-model", "model", [run.folder / "model.safetensors"])
        model.metadata |= {"round": state.round, "partition": run.data.hash}
        for name in self._defined:  # over all rounds, of which a resumed run's file has the later ones
            values = [record.metrics[name] for record in history if name in record.metrics]
            if goal := _goal(name):
                best = min(values) if goal == "min" else max(values)
                self.experiment.summary.update({name: {goal: best, "last": values[-1]}})
        if history:
            model.metadata["digest"] = history[-1].digest
            self.experiment.summary["digest"] = history[-1].digest
        self.experiment.log_artifact(model)

    def finish(self, exit_code: int = 0) -> None:
        """End the W&B run, if it has begun."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=exit_code)

    def hint(self) -> str | None:
        """The command that sends an offline run, with what it had before a resume; None if there is nothing to send."""
        experiment = self._experiment
        if experiment is None or not experiment.offline:
            return None
        return f"wandb sync {shlex.quote(str(Path(experiment.dir).parents[1]))}/offline-run-*-{experiment.id}"

    def _artifact(self, name: str, kind: str, files: Sequence[Path]) -> Any:
        import wandb

        artifact = wandb.Artifact(name.replace("/", "-"), type=kind)
        for file in files:
            artifact.add_file(str(file), name=file.name if len(files) == 1 else str(file).lstrip("/"))
        return artifact

    def _confusion(self, state: ServerState) -> dict[str, Any]:
        import wandb

        counts = confusion(self._run.model, self._run.data, state.vector)
        return {} if counts is None else {"confusion": wandb.Image(confusion_figure(counts))}

    def _note_target(self, record: RoundRecord) -> None:
        metric, target = self._target()
        if metric is None or target is None or self._reached:
            return
        names = (metric, "comm/up_bytes", "comm/down_bytes", "time/virtual_s")
        self._rows.append({"round": record.round, **{n: v for n, v in record.metrics.items() if n in names}})
        lower = _goal(metric) == "min"
        if reaches(record.metrics.get(metric), target, lower=lower):
            self._reached = True
            found = reached(self._rows, metric, target, lower=lower) or {}
            del found["seconds"]
            self.experiment.summary.update({f"{name}_to_target": value for name, value in found.items()})

    def _target(self) -> tuple[str | None, float | None]:
        """The logger's own target for `optimized_metric`, else the run's."""
        if self.target is not None:
            return self._run.config["optimized_metric"], self.target
        return asked(self._run.config) or (None, None)


def _goal(name: str) -> str | None:
    words = name.lower()
    lower = lower_is_better(name) or "backdoor_success" in words
    return "min" if lower else "max" if any(word in words for word in _HIGHER_IS_BETTER) else None


def _of_clients(reports: Sequence[ClientReport]) -> dict[str, Any]:
    """A table of a cohort's clients, of more than 200 some at even distances, and a histogram of each number."""
    import wandb

    names = sorted({name for report in reports for name in report.metrics})
    chosen = np.unique(np.linspace(0, len(reports) - 1, min(len(reports), MAX_CLIENTS)).round().astype(int))
    columns: list[str | int] = ["client", "num_samples", "num_steps", "comm/up_bytes", "state", *names]
    rows: list[Iterable[Any]] = [
        [r.client_id, r.num_samples, r.num_steps, r.up_bytes, _state(r), *(r.metrics.get(name) for name in names)]
        for r in (reports[index] for index in chosen)
    ]
    found: dict[str, Any] = {"clients/table": wandb.Table(columns=columns, data=rows)}
    for name in names:
        values = np.array([report.metrics[name] for report in reports if name in report.metrics])
        values = values[np.isfinite(values)]
        if len(values):
            found[f"clients/histogram/{name}"] = wandb.Histogram(np_histogram=np.histogram(values, bins=_BINS))
    return found


def _state(report: ClientReport) -> str:
    states = {"rejected": report.rejected, "malicious": report.malicious, "filtered": report.filtered}
    return ", ".join(name for name, holds in states.items() if holds) or "accepted"


@contextlib.contextmanager
def _without_secrets() -> Iterator[None]:
    """Inside the block, W&B reads a command line without secrets."""
    arguments = sys.argv
    sys.argv = [arguments[0], *masked_arguments(arguments[1:])]
    try:
        yield
    finally:
        sys.argv = arguments


def _require_key() -> None:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    known = path.exists() and netrc.netrc(path).authenticators(host) is not None
    if not (known or os.environ.get("WANDB_API_KEY")):
        raise ValueError(
            "logger=wandb needs an API key: set WANDB_API_KEY or run `wandb login`; logger=wandb_offline needs none"
        )
