"""The configuration saved in a run's folder. Nothing here imports torch."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from flrl.errors import DamagedError

BEFORE = ".hydra.before"
"""The name of a run's `.hydra` while another command is checked that resumes the run."""
_SHAPED = tuple(f"flrl.data.datasets.{name}" for name in ("digits", "mnist", "fashion_mnist"))


def saved_in(folder: Path) -> Path | None:
    """The file with the configuration of the run in a folder, as it was before this command; None if there is none."""
    # If the run is resumed in its own folder, Hydra has written the new configuration there already.
    path = folder / (BEFORE if (folder / BEFORE).is_dir() else ".hydra") / "config.yaml"
    return path if path.exists() else None


def read_config(path: Path) -> dict[str, Any]:
    """A resolved configuration from a file, with the keys of this version.

    Raises:
        DamagedError: the file is damaged, or holds something else.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or "seed" not in config:
        raise DamagedError(f"{path} is not the configuration of a run")
    return migrated(config)  # type: ignore[arg-type]


def migrated(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of an earlier version with the keys of this one.

    Datasets of flrl had arguments for the shape of samples and the number of classes, which are now read from the data.
    The key `backend.schedule` was `backend.dealing`; transforms were a list.
    """
    dataset = config.get("dataset")
    if isinstance(dataset, dict) and dataset.get("_target_") in _SHAPED:
        kept = {key: value for key, value in dataset.items() if key not in ("input_shape", "num_classes")}
        config = {**config, "dataset": kept}
    strategy = config.get("strategy")
    if isinstance(strategy, dict) and strategy.get("transforms") == []:
        config = {**config, "strategy": {**strategy, "transforms": {}}}
    backend = config.get("backend")
    if isinstance(backend, dict) and "dealing" in backend:
        renamed = {"schedule" if key == "dealing" else key: value for key, value in backend.items()}
        config = {**config, "backend": renamed}
    return config
