"""Weights & Biases: one run per job, every metric against the round, the final model, the partition as a picture."""

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pytorch_lightning.loggers import WandbLogger

from flrl.callbacks.base import RunInfo
from flrl.logging.pictures import partition_figure
from flrl.types import RoundRecord


class FlrlWandbLogger(WandbLogger):
    """Lightning's W&B logger, with a federation's artifacts. It never prompts, and needs no account when offline.

    Args:
        save_dir: folder in which the `wandb/` folder is made.
        project: W&B project.
        name: name of the run.
        group: runs of one group are shown together; the experiment's name by default.
        tags: tags of the run.
        offline: keep everything on disk; `wandb sync` sends it later.

    Raises:
        ValueError: online, but no API key is configured.
    """

    def __init__(
        self, *, save_dir: str, project: str, name: str, group: str, tags: Sequence[str], offline: bool, **options: Any
    ) -> None:
        if not offline and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
            _require_key()
        import wandb

        super().__init__(
            name=name,
            save_dir=save_dir,
            project=project,
            offline=offline,
            group=group,
            tags=list(tags),
            log_model=False,
            reinit="finish_previous",
            settings=wandb.Settings(silent=True),
            **options,
        )
        self._wandb_init.pop("anonymous", None)  # wandb warns of Lightning's default

    def log_start(self, run: RunInfo) -> None:
        """Plot every metric against `round`, and show the partition."""
        import wandb

        self.experiment.define_metric("round")
        self.experiment.define_metric("*", step_metric="round")
        counts = run.data.label_counts()
        if counts is not None:
            figure = partition_figure(counts)
            self.experiment.log({"partition": wandb.Image(figure), "round": 0})

    def log_end(self, run: RunInfo, history: Sequence[RoundRecord]) -> None:
        """Log the final model and the partition as artifacts."""
        import wandb

        for kind, file in (("model", "model.safetensors"), ("partition", "partition.npz")):
            artifact = wandb.Artifact(f"{run.name}-{kind}".replace("/", "-"), type=kind)
            artifact.add_file(str(run.folder / file))
            self.experiment.log_artifact(artifact)
        if history:
            self.experiment.summary["digest"] = history[-1].digest

    def finish(self) -> None:
        """End the W&B run, if it has begun."""
        if self._experiment is not None:
            self._experiment.finish()


def _require_key() -> None:
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    known = path.exists() and netrc.netrc(path).authenticators(host) is not None
    if not (known or os.environ.get("WANDB_API_KEY")):
        raise ValueError(
            "logger=wandb needs an API key: set WANDB_API_KEY or run `wandb login`; logger=wandb_offline needs none"
        )
