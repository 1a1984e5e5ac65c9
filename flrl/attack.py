"""Attack a finished run: `python -m flrl.attack run=outputs/... attack=dlg round=3 client=17`, or `flrl-attack`."""

import sys

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flrl.backends.mpi.launch import run_under_mpi
from flrl.cli.app import run_app
from flrl.cli.arguments import arranged
from flrl.cli.importing import uncollected
from flrl.config import AttackConfig
from flrl.portable import choose, of_run


def attack(cfg: DictConfig) -> None:
    """Attack as configured; prints the result and writes it into the run's folder `attacks/`."""
    choose(of_run(cfg.run))
    with uncollected():
        from flrl.attack_run import attack_run

    attack_run(cfg, choice=HydraConfig.get().runtime.choices["attack"])


def main() -> None:
    """The console script `flrl-attack`."""
    sys.argv[1:] = arranged(sys.argv[1:])
    run_under_mpi(lambda: run_app(attack, config_name="attack", schema=AttackConfig))


if __name__ == "__main__":
    main()
