"""The parts of a run before its first round, which check that they can be combined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flrl.layout import ParameterLayout

if TYPE_CHECKING:  # the parts import this
    import pytorch_lightning as pl

    from flrl.adversaries import Adversary
    from flrl.aggregation import Aggregator
    from flrl.data import Source
    from flrl.devices import Devices
    from flrl.sampling import Sampler
    from flrl.strategies import Strategy
    from flrl.trainers import Trainer
    from flrl.transforms import Transform


@dataclass(frozen=True, slots=True)
class Setup:
    """The argument of a part's `check(setup)`, which raises ValueError for parts that it cannot be combined with.

    Attributes:
        module: the user's LightningModule.
        layout: the layout of its parameters.
        strategy: the algorithm.
        aggregator: the rule that aggregates updates.
        transforms: transforms of updates, by name, in order.
        sampler: chooses each round's cohort.
        trainer: the engine of local training.
        sizes: number of training samples of every client, int64 `[num_clients]`.
        num_holding_out: number of clients that hold samples out for evaluation.
        num_root_samples: number of samples that the server has itself.
        adversary: which clients are malicious, and what they do; None for nobody.
        public: the samples that the server and all clients have; None if there are none.
        devices: what clients train on; None if there is no virtual clock.
        sampling_seed: seed of the cohorts.
    """

    module: "pl.LightningModule"
    layout: ParameterLayout
    strategy: "Strategy"
    aggregator: "Aggregator"
    transforms: "Mapping[str, Transform]"
    sampler: "Sampler"
    trainer: "Trainer"
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    num_holding_out: int = 0
    num_root_samples: int = 0
    adversary: "Adversary | None" = None
    public: "Source | None" = None
    devices: "Devices | None" = None
    sampling_seed: int = 0

    @classmethod
    def of(
        cls,
        module: "pl.LightningModule",
        strategy: "Strategy",
        trainer: "Trainer",
        sizes: "np.ndarray | Sequence[int]",
        *,
        num_holding_out: int = 0,
        num_root_samples: int = 0,
        adversary: "Adversary | None" = None,
        public: "Source | None" = None,
        devices: "Devices | None" = None,
        sampling_seed: int = 0,
    ) -> "Setup":
        """The setup of a strategy and its parts; arguments as the attributes."""
        layout = ParameterLayout(module, strategy.personal)
        return cls(
            module=module,
            layout=layout,
            strategy=strategy,
            aggregator=strategy.aggregator,
            transforms=strategy.transforms,
            sampler=strategy.sampler,
            trainer=trainer,
            sizes=np.asarray(sizes, np.int64),
            num_holding_out=num_holding_out,
            num_root_samples=num_root_samples,
            adversary=adversary,
            public=public,
            devices=devices,
            sampling_seed=sampling_seed,
        )

    @property
    def num_clients(self) -> int:
        """Number of clients of the federation."""
        return len(self.sizes)

    @property
    def num_samples(self) -> int:
        """Number of training samples of all clients."""
        return int(self.sizes.sum())

    @property
    def most_updates(self) -> int:
        """The largest number of updates that the server steps on."""
        return self.strategy.schedule.largest(self.sampler.largest(self.num_clients), self.num_clients)

    def check(self) -> None:
        """Let every part check the others, before the first round.

        Raises:
            ValueError: two parts cannot be combined; the message has the reason.
        """
        if self.devices is not None and self.strategy.pools_samples:
            name = type(self.strategy).__name__
            raise ValueError(f"devices: {name} trains on the samples of all clients at once, on no client's device")
        if self.devices is not None:
            self.devices.check(self.sizes, self.sampling_seed)
        self.sampler.check(self)
        self.trainer.check(self)
        self.strategy.check(self)
        self.strategy.schedule.check(self)
        self.aggregator.check(self)
        for transform in self.transforms.values():
            transform.check(self)
        if self.adversary is not None:
            self.adversary.check(self)
