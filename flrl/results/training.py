"""`flrl.train("+experiment=mnist_fedavg", "seed=1")`: the command from Python, with a `Run` as its result."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig

from flrl.cli.arguments import arranged, quietened
from flrl.cli.explaining import Explained, raising
from flrl.results.run import Run, load


def trained(task: Callable[[DictConfig], float | None], *overrides: str) -> Run:
    """Train as `flrl-train` with the same overrides does: the same folder, files and digests.

    Args:
        task: trains as configured, under Hydra.
        overrides: as on the command line, `"+experiment=mnist_fedavg"`, `"seed=1"`, `"--config-dir=my_conf"`.

    Returns:
        The finished run.

    Raises:
        ValueError: an override is wrong, or a setting is invalid.
        FlrlError: the run fails while it trains.
        KeyboardInterrupt: it was interrupted; `resume=<folder>` goes on.
    """
    from hydra.core.hydra_config import HydraConfig

    from flrl.cli.app import run_app
    from flrl.config import TrainConfig

    if {"-m", "--multirun"} & {*overrides}:
        raise ValueError("-m: from Python a sweep is a loop, [flrl.train(f'seed={seed}') for seed in range(3)]")
    folders: list[Path] = []

    def noted(cfg: DictConfig) -> float | None:
        folders.append(Path(HydraConfig.get().runtime.output_dir))
        return task(cfg)

    with _as_if_started(*overrides), raising():
        try:
            run_app(noted, config_name="train", schema=TrainConfig)
        except Explained as end:
            raise end.as_exception() from end.error
        except SystemExit as end:
            if end.code == 130:
                raise KeyboardInterrupt from end
            if end.code == 143:  # SIGTERM
                raise
            raise ValueError(f"{' '.join(overrides)}: not a command line of flrl-train") from end
    if not folders:
        raise ValueError(f"{' '.join(overrides)}: nothing was trained")
    return load(folders[-1])


@contextlib.contextmanager
def _as_if_started(*overrides: str) -> Iterator[None]:
    """The command line in `sys.argv`, and afterwards the loggers that there were before."""
    root, argv = logging.getLogger(), sys.argv
    handlers, level = list(root.handlers), root.level
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "0"  # `run_app` sets it
    sys.argv = ["flrl-train", *arranged(quietened(overrides))]
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
        root.setLevel(level)
        for handler in [handler for handler in root.handlers if handler not in handlers]:
            root.removeHandler(handler)
            handler.close()
        for handler in handlers:
            root.addHandler(handler)  # Hydra has removed those of before
