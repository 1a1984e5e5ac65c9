"""Writes the report of a run, whose model and data it loads, or of a sweep, from files alone."""

from pathlib import Path

from omegaconf import DictConfig

from flrl.evaluate_run import check_partition, load_saved, saved_config
from flrl.recipe import Recipe
from flrl.reporting import REPORT, Predicted, RunFiles, predict, runs_in, sweep_page, write_page, write_report
from flrl.runs.integrity import check_files

INDEX = "index.html"


def report_run(cfg: DictConfig) -> Path:
    """Report as configured by `conf/report.yaml`; prints and returns the page's path.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: both or neither of `run` and `sweep` are given, or the folder's files are damaged.
    """
    if (cfg.run is None) == (cfg.sweep is None):
        raise ValueError("one of run=<folder of a run> and sweep=<folder of a sweep> is needed")
    if not cfg.seconds >= 0:
        raise ValueError(f"seconds={cfg.seconds}: must be at least 0")
    if cfg.sweep is not None:
        if cfg.reference is not None:
            raise ValueError(f"reference={cfg.reference}: is for run=..., a sweep's runs are beside each other already")
        path = _sweep(Path(cfg.sweep))
    else:
        references = []
        if cfg.reference is not None:
            references = [(f"reference {cfg.reference}", RunFiles.read(Path(cfg.reference), "reference"))]
        run = RunFiles.read(Path(cfg.run))
        path = write_report(run.folder, _predicted(cfg, run), references)
    print(f"report  {path}")
    return path


def _sweep(folder: Path) -> Path:
    runs = runs_in(folder)
    for run in runs:
        if not (run.folder / REPORT).exists():
            write_report(run.folder, None)
    write_page(folder / INDEX, sweep_page(folder, runs))
    return folder / INDEX


def _predicted(cfg: DictConfig, run: RunFiles) -> Predicted:
    """What a run's final model predicts; without it, or without its data, a note that says why there is nothing."""
    if not run.summary:
        return Predicted(notes=["Predictions are left out: there is no final model."])
    try:
        config = saved_config(run.folder, cfg.data_dir)
        recipe = Recipe(config)
        model, _ = recipe.models(recipe.strategy(), threads=cfg.threads, device=cfg.device)
        check_files(run.folder, model.layout)
        data = recipe.data()
        check_partition(run.folder, data)
        load_saved(model, run.folder, None)
    except (OSError, ImportError) as error:
        return Predicted(notes=[f"Predictions are left out: {error}."])
    return predict(model, data, seed=recipe.seeds.run, seconds=cfg.seconds, round=run.summary["rounds"])
