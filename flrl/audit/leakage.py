"""The audit of leakage: a sweep over batch sizes, local steps and defences, each run attacked, as table and picture."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from flrl.attack_run import attack_run
from flrl.attacks.results import RESULT
from flrl.audit.pictures import HeatMap, heat_maps
from flrl.audit.table import Row, distinct, finished_jobs, mean_of
from flrl.cli.explaining import explained
from flrl.config import CONF_DIR, AttackConfig
from flrl.sweeps import write_csv

TABLE, PICTURE = "leakage.csv", "leakage.png"
_SHOWN = ("mse", "psnr", "ssim", "label_accuracy", "auc", "tpr_at_fpr_0.01")


class LeakageAudit(Callback):
    """A Hydra callback that attacks each job of a sweep, and writes `leakage.csv` and, at the end, `leakage.png`.

    Args:
        attacks: names of choices of the group `attack`, which are made with the settings in their yamls.
        round: the observed round.
        client: the observed client.

    Raises:
        ValueError: there is no attack of a name.
    """

    def __init__(self, *, attacks: Sequence[str], round: int = 1, client: int = 0) -> None:
        self.attacks, self.round, self.client = list(attacks), round, client
        for name in self.attacks:
            attack_yaml(name)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Attack the job's run, unless that has been done, and write the table of the jobs so far."""
        if job_return.status != JobStatus.COMPLETED:
            return
        with explained(full_error=False):
            folder = Path(config.hydra.runtime.output_dir)
            if not (folder / "attacks" / "all" / self._where / RESULT).exists():
                attack_run(self._attacks(folder, config), choice="all")
            if config.hydra.mode == RunMode.MULTIRUN:
                sweep = Path(config.hydra.sweep.dir)
                write_csv(sweep / TABLE, rows_of(sweep, self._where))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the table and the picture of all jobs in the sweep's folder."""
        with explained(full_error=False):
            audit(Path(config.hydra.sweep.dir), self._where)

    @property
    def _where(self) -> str:
        return f"{self.round}-{self.client}"

    def _attacks(self, folder: Path, config: DictConfig) -> DictConfig:
        """The configuration of `flrl-attack` for a run."""
        settings = {"run": str(folder), "round": self.round, "client": self.client, "seed": config.seed, "logger": {}}
        attacks = {name: OmegaConf.load(attack_yaml(name)) for name in self.attacks}
        made: Any = OmegaConf.merge(OmegaConf.structured(AttackConfig), OmegaConf.create(settings), {"attack": attacks})
        return made  # type: ignore[no-any-return]


def attack_yaml(name: str, key: str = "hydra.callbacks.leakage.attacks") -> Path:
    """The file of a choice of the group `attack`; ValueError if there is none."""
    path = CONF_DIR / "attack" / f"{name}.yaml"
    if not path.is_file():
        choices = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise ValueError(f"{key}: there is no attack {name}; there are: {choices}")
    return path


def audit(sweep: Path, where: str) -> None:
    """Write the table and the picture of the attacked jobs in a sweep's folder, and print where they are.

    Args:
        sweep: the sweep's folder.
        where: the observed round and client, as the name of a result's folder.

    Raises:
        ValueError: no job has been attacked there.
    """
    rows = rows_of(sweep, where)
    if not rows:
        raise ValueError(f"{sweep}: no job of a sweep has been attacked there")
    write_csv(sweep / TABLE, rows)
    heat_maps(maps_of(rows), f"{len(rows)} attacks, in %").savefig(sweep / PICTURE, dpi=150)
    print(f"{sweep / TABLE}\n{sweep / PICTURE}")


def rows_of(sweep: Path, where: str) -> list[Row]:
    """A row for each attack on each finished job: defence, local steps, batch size, seed, and its scores."""
    return [
        row for folder, job in finished_jobs(sweep) for row in _attacked(folder, job, folder.relative_to(sweep), where)
    ]


def _attacked(folder: Path, job: Row, name: Path, where: str) -> Iterator[Row]:
    path = folder / "attacks" / "all" / where / RESULT
    if not path.exists():
        return
    trainer, strategy = job["config"]["trainer"], job["config"]["strategy"]
    row = {
        "job": name.as_posix(),
        "defence": ", ".join(strategy.get("transforms") or {}) or "none",
        "local_steps": trainer["local_steps"],
        "batch_size": trainer["batch_size"],
        "seed": job["seed"],
        "test/accuracy": job["metrics"].get("test/accuracy"),
    }
    for attack, found in json.loads(path.read_text())["attacks"].items():
        scores = {key: found.get(key) for key in (*_SHOWN, "seconds", "not_applied")}
        yield {**row, "attack": attack, **scores}


def maps_of(rows: Sequence[Row]) -> list[HeatMap]:
    """For each attack, how alike its reconstructions are, and how many of the labels are right."""
    maps = []
    for attack in distinct(rows, "attack"):
        own = [row for row in rows if row["attack"] == attack]
        for metric, title in (
            ("ssim", "similarity (SSIM) of reconstructions"),
            ("label_accuracy", "labels found"),
            ("auc", "membership, area under the ROC curve"),
        ):
            if any(row[metric] is not None for row in own):
                maps.append(_map(f"{attack}: {title}", own, rows, metric))
    return maps


def _map(title: str, own: Sequence[Row], rows: Sequence[Row], metric: str) -> HeatMap:
    steps, batches = sorted(distinct(rows, "local_steps"), key=str), sorted(distinct(rows, "batch_size"))
    defences = distinct(rows, "defence")
    cells = [(step, batch) for step in steps for batch in batches]
    values = [
        [mean_of(own, metric, defence=defence, local_steps=step, batch_size=batch) for step, batch in cells]
        for defence in defences
    ]
    columns = [(f"{step} local step{'s' * (step != 1)}, batches of", str(batch)) for step, batch in cells]
    return HeatMap(title, defences, columns, values)
