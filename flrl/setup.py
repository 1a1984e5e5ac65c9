"""The parts of a run as they are before its first round, for each of them to check that they go together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flrl.layout import ParameterLayout

if TYPE_CHECKING:  # the parts import this
    import pytorch_lightning as pl

    from flrl.aggregation import Aggregator
    from flrl.sampling import Sampler
    from flrl.strategies import Strategy
    from flrl.trainers import Trainer
    from flrl.transforms import Transform


@dataclass(frozen=True, slots=True)
class Setup:
    """What a part's `check(setup)` may look at; it raises ValueError, with the reason, for what it cannot go with.

    Attributes:
        module: the user's LightningModule.
        layout: of its parameters.
        strategy: the algorithm.
        aggregator: makes one of many updates.
        transforms: what happens to updates on their way, by name, in order.
        sampler: who takes part.
        trainer: how clients train.
        sizes: training samples of every client.
        num_holding_out: clients that hold samples out for evaluation.
        adversary: which clients are malicious; None: nobody.
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
    adversary: Any = None

    @classmethod
    def of(
        cls,
        module: "pl.LightningModule",
        strategy: "Strategy",
        trainer: "Trainer",
        sizes: "np.ndarray | Sequence[int]",
        *,
        num_holding_out: int = 0,
    ) -> "Setup":
        """The setup of a strategy with the parts that it holds."""
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
        )

    @property
    def num_clients(self) -> int:
        """Clients of the federation."""
        return len(self.sizes)

    @property
    def num_samples(self) -> int:
        """Training samples of all clients."""
        return int(self.sizes.sum())

    def check(self) -> None:
        """Have every part check the others, before the first round.

        Raises:
            ValueError: two parts do not go together, and why.
        """
        self.sampler.check(self)
        self.trainer.check(self)
        self.strategy.check(self)
        self.aggregator.check(self)
        for transform in self.transforms.values():
            transform.check(self)
