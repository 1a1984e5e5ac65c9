"""From a configuration to the objects of a worker: the same in every process."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flrl.adversaries import Adversary, Threat
from flrl.bound_model import BoundModel
from flrl.cli.instantiation import make, shift_of, without_more
from flrl.clients import ClientStore
from flrl.config import CLIENT_STORE, NO_DEVICES, NOBODY
from flrl.data import FederatedData, TensorSource
from flrl.data.federated import Partition
from flrl.data.shifts import Shift
from flrl.devices import Devices, Fleet, NoDevices, Work
from flrl.models import Kinds
from flrl.privacy import Privacy, Spending, mechanism_of
from flrl.process_setup import prepare
from flrl.sampling import draw, needs
from flrl.scheduling import Deadline, Synchronous
from flrl.seeding import Seeds
from flrl.setup import Setup
from flrl.strategies import Strategy
from flrl.strategies.bounding import check_bounded
from flrl.trainers import EagerTrainer, auto
from flrl.worker import Worker


@dataclass(frozen=True)
class Recipe:
    """Makes a run's objects from its configuration; can be sent to other processes.

    Attributes:
        config: the resolved configuration, as plain dicts and lists.

    Raises:
        ValueError: a seed, a setting of `privacy` or `on_client_failure` is invalid; methods raise it for the groups
            that they make.
    """

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        Seeds.of(self.config)
        Privacy.of(self.config)
        if self._on_client_failure not in ("stop", "drop"):
            raise ValueError(f"on_client_failure={self._on_client_failure}: must be 'stop' or 'drop'")

    @property
    def _on_client_failure(self) -> str:
        return str(self.config.get("on_client_failure", "stop"))

    @property
    def seeds(self) -> Seeds:
        """The run's seeds."""
        return Seeds.of(self.config)

    def data(self) -> FederatedData:
        """The dataset, divided among clients."""
        splits = make(self.config, "dataset")
        return FederatedData(
            splits,
            self.partition(),
            seed=self.seeds.partition,
            holdout=self.config["holdout"],
            root_samples=self.config.get("root_samples", 0),  # configurations of earlier versions have no such keys
            held_out_clients=self.config.get("held_out_clients", 0),
            public_samples=self.config.get("public_samples", 0),
            shift=self.shift(),
        )

    def partition(self) -> Partition:
        """The function that divides the samples; `partition.seed` is its argument only if it takes one of that name."""
        partition: Partition = make({"partition": without_more(self.config["partition"])}, "partition")
        return partition

    def shift(self) -> Shift | None:
        """What becomes of the samples of clients; None for nothing."""
        node = shift_of(self.config)
        if node is None:
            return None
        shift: Shift = make({"partition.shift": node}, "partition.shift")
        return shift

    def module(self) -> Any:
        """The LightningModule of the global model, initialised from its seed alone."""
        return self.modules()[0]

    def modules(self) -> tuple[Any, list[Any]]:
        """The LightningModule of the global model, and those of `model.kinds`, each initialised from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds.model)
            made: Any = make(self.config, "model")
            module, kinds = (made.server, made.kinds) if isinstance(made, Kinds) else (made, [])
            if not isinstance(getattr(module, "automatic_optimization", None), bool):
                raise ValueError(f"model: {type(module).__name__} is not a LightningModule")
            module.configure_model()
            return module, kinds

    def strategy(self) -> Strategy:
        """The federated algorithm."""
        strategy: Strategy = make(self.config, "strategy")
        return strategy

    def adversary(self) -> Adversary:
        """The adversary; that of a configuration of an earlier version is nobody."""
        adversary: Adversary = make({"adversary": self.config.get("adversary") or NOBODY}, "adversary")
        return adversary

    def devices(self) -> Devices | None:
        """What clients train on; None if there is no virtual clock, as in configurations of earlier versions."""
        made: Any = make({"devices": self.config.get("devices") or NO_DEVICES}, "devices")
        return None if isinstance(made, NoDevices) else made

    def client_store(self) -> ClientStore:
        """The store of client memory."""
        store: ClientStore = make({"client_store": self.config.get("client_store") or CLIENT_STORE}, "client_store")
        return store

    def models(self, strategy: Strategy, *, threads: int, device: str) -> tuple[BoundModel, list[BoundModel]]:
        """The global model, and those of clients that have their own: see `Worker`.

        Args:
            strategy: says what is sent.
            threads: intra-op threads.
            device: where the models train.

        Raises:
            ValueError: clients have networks of several kinds and exchange parameters, or there are none to train.
        """
        module, kinds = self.modules()
        if strategy.sends_model and kinds:
            name = type(strategy).__name__
            raise ValueError(f"model.kinds: clients of {name} exchange parameters, so that all must have one model")
        stays = strategy.personal
        model = prepare(module, threads=threads, device=device, personal=stays, batchnorm=strategy.batchnorm)
        if strategy.sends_model:
            if not model.layout.num_trainable:
                raise ValueError(f"model: {type(model.module).__name__} has no trainable parameters that are sent")
            return model, []
        own = kinds or ([self.module()] if model.layout.size else [])
        return model, [prepare(each, threads=threads, device=device, personal=["*"]) for each in own]

    def setup(self, data: FederatedData) -> Setup:
        """The parts of the run, not yet checked against each other; the eager engine where one is to be chosen."""
        trainer = make(self.config, "trainer")
        if self.config["trainer"]["_target_"] == auto.TARGET:
            trainer = EagerTrainer(**trainer.keywords)
        return Setup.of(self.module(), self.strategy(), trainer, data.sizes, **self._others(data))

    def _others(self, data: FederatedData) -> dict[str, Any]:
        """What a setup has besides module, strategy, trainer and sizes."""
        return {
            "num_holding_out": len(data.holding_out()),
            "num_root_samples": data.num_root_samples,
            "adversary": self.adversary(),
            "public": data.splits.public,
            "devices": self.devices(),
            "sampling_seed": self.seeds.sampling,
        }

    def spending(self, data: FederatedData) -> Spending | None:
        """What counts the epsilon of the run's mechanism; None if it has none.

        Raises:
            ValueError: the mechanism cannot be combined with other parts, or there is a budget and no mechanism.
        """
        setup, privacy = self.setup(data), Privacy.of(self.config)
        found = mechanism_of(setup)
        if found is None:
            if privacy.epsilon is not None:
                raise ValueError(
                    f"privacy.epsilon={privacy.epsilon:g}: no part of the run adds noise for it; choose "
                    "strategy/transforms=dp, or take the budget away"
                )
            return None
        check_bounded(setup)
        setup.check()
        return Spending(*found, setup, privacy, functools.partial(_cohort, setup, self.seeds.sampling))

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """A worker, after checks of its parts against each other.

        Args:
            data: the result of `data`, or a part of it.
            threads: intra-op threads.
            device: where the model trains.

        Raises:
            ValueError: parts cannot be combined, or the model has nothing to train.
        """
        trainer, strategy, evaluator = make(self.config, "trainer"), self.strategy(), make(self.config, "evaluation")
        model, kinds = self.models(strategy, threads=threads, device=device)
        others = self._others(data)
        adversary, devices, public = (others[name] for name in ("adversary", "devices", "public"))
        modules: list[Any] = [each.module for each in (model, *kinds)]
        for module in modules:
            setup = Setup.of(module, strategy, trainer, data.sizes, **others)
            setup.check()
        if len(data.splits.train):
            adversary.check_samples(data.splits.train, data.num_dataset_samples)
        evaluator.check(setup)
        if model.local.device.type == "cuda":
            for source in (data.splits.train, data.splits.test, public):
                if isinstance(source, TensorSource):
                    source.move_to(model.local.device)
        seed = self.seeds.run
        threat = Threat.of(adversary, data.num_clients, seed, data.splits.test)
        fleet = None
        if devices is not None:
            work = Work(
                batch_size=trainer.batch_size,
                epochs=trainer.local_epochs,
                steps=trainer.local_steps,
                passes=strategy.passes,
                gradients=strategy.gradients,
            )
            fleet = Fleet(devices, work, self.seeds.sampling)
        return Worker(
            model,
            data,
            trainer,
            strategy,
            evaluator,
            seed,
            drop_failures=self._on_client_failure == "drop",
            threat=threat,
            kinds=kinds,
            fleet=fleet,
        )


def _cohort(setup: Setup, seed: int, round: int) -> np.ndarray:
    """Who takes part in a round, as far as is known before it: everybody where devices or earlier rounds decide."""
    away = setup.devices is not None and setup.devices.availability is not None
    chosen_by_clock = not isinstance(setup.strategy.schedule, Synchronous | Deadline)
    if away or chosen_by_clock or {*needs(setup.sampler)} - {"sizes"}:
        return np.arange(setup.num_clients)
    return draw(setup.sampler, {}, setup.sizes, seed=seed, round=round)
