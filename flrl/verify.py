"""Recompute a run and compare: `python -m flrl.verify run=outputs/... backend=process`, or `flrl-verify ...`."""

import sys

from omegaconf import DictConfig, OmegaConf

from flrl.backends.mpi.launch import prepare, run_under_mpi
from flrl.cli.app import run_app
from flrl.cli.arguments import arranged
from flrl.cli.importing import uncollected
from flrl.config import VerifyConfig
from flrl.portable import of_run


def verify(cfg: DictConfig) -> None:
    """Verify as configured; ends the process with code 1 if something differs."""
    if of_run(cfg.run):
        OmegaConf.update(cfg, "backend.portable", True, force_add=True)
    prepare(cfg.backend.get("_target_", ""), portable=cfg.backend.get("portable") is True)
    with uncollected():
        from flrl.verify_run import verify_run

    if not verify_run(cfg):
        sys.exit(1)


def main() -> None:
    """The console script `flrl-verify`."""
    sys.argv[1:] = arranged(sys.argv[1:])
    run_under_mpi(lambda: run_app(verify, config_name="verify", schema=VerifyConfig))


if __name__ == "__main__":
    main()
