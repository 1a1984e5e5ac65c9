"""From a configuration to the objects of a worker: the same in every process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flrl.backends.worker import Worker, prepare
from flrl.data import FederatedData, TensorSource
from flrl.data.federated import Partition
from flrl.instantiation import make, without_seed
from flrl.seeding import Seeds


@dataclass(frozen=True)
class Recipe:
    """How workers are made, in a form that can be sent to where they are made.

    Attributes:
        config: the resolved configuration, as plain dicts and lists.
    """

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        Seeds.of(self.config)
        if self._on_client_failure not in ("stop", "drop"):
            raise ValueError(f"on_client_failure={self._on_client_failure}: must be 'stop' or 'drop'")

    @property
    def _on_client_failure(self) -> str:
        return str(self.config.get("on_client_failure", "stop"))

    @property
    def seeds(self) -> Seeds:
        """What random choices follow from."""
        return Seeds.of(self.config)

    def data(self) -> FederatedData:
        """The dataset, shared out."""
        splits = make(self.config, "dataset")
        return FederatedData(splits, self.partition(), seed=self.seeds.partition, holdout=self.config["holdout"])

    def partition(self) -> Partition:
        """The function that shares out the samples; `partition.seed` is for its generator, not one of its arguments.

        Unless it has an argument of that name, which it is then given too.
        """
        partition: Partition = make({"partition": without_seed(self.config["partition"])}, "partition")
        return partition

    def module(self) -> Any:
        """The LightningModule, initialised from its seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seeds.model)
            module = make(self.config, "model")
            if not isinstance(getattr(module, "automatic_optimization", None), bool):
                raise ValueError(f"model: {type(module).__name__} is not a LightningModule")
            module.configure_model()
            return module

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """All that a worker needs; checks that its parts go together.

        Args:
            data: from `data`, or part of it.
            threads: intra-op threads.
            device: where the model trains.
        """
        trainer, strategy, evaluator = (make(self.config, name) for name in ("trainer", "strategy", "evaluation"))
        strategy.sampler.check(data.num_clients)
        cohort = len(strategy.sampler(data.num_clients, seed=self.seeds.sampling, round=1))
        if strategy.min_clients > cohort:
            raise ValueError(f"strategy.min_clients={strategy.min_clients}: only {cohort} clients take part in a round")
        model = prepare(self.module(), threads=threads, device=device)
        if not model.layout.num_trainable:
            raise ValueError(f"model: {type(model.module).__name__} has no trainable parameters")
        trainer.check(model.module)
        strategy.check(model.module, trainer)
        evaluator.check(model.module, data)
        if model.vector.device.type == "cuda":
            for source in (data.splits.train, data.splits.test):
                if isinstance(source, TensorSource):
                    source.move_to(model.vector.device)
        drop = self._on_client_failure == "drop"
        return Worker(model, data, trainer, strategy, evaluator, self.seeds.run, drop_failures=drop)
