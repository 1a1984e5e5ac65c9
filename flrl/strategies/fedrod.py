"""FedRoD: a generic head that learns from balanced losses, and beside it a personal one for each client's classes.

Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR 2022, arXiv
2107.00778, with the balanced softmax and a linear personal head. On samples of class y a client minimises
`CE(g + log n, y) + CE(stop(g) + p, y)`: g are the generic head's scores, p the personal one's, n the client's numbers
of samples of each class, and no gradient of the second term reaches g or the layers below. Its hypernetwork is not part
of it.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flrl.lightning.local_step import LocalStep, layer_of
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem


class FedRoD(FedAvg):
    """FedAvg of all but the personal head, for models with two heads, such as `model/net=two_heads`.

    `test/...` is the generic head's, as the personal one is what it was in the beginning: zeros; a client's personal
    model has its own. The module's loss is replaced, and batches must be pairs of inputs and classes.

    Args:
        generic: name of the generic head, a `torch.nn.Linear`.
        head: name of the personal head, whose inputs are detached, and which adds its scores to the generic one's.
        options: as for `FedAvg`; `personal` is the personal head's parameters.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, generic: str = "net.generic", head: str = "net.personal", **options: Any) -> None:
        super().__init__(**{"personal": [f"{head}.*"], **options})
        self.generic = generic
        self.head = head
        self.observes = (generic, head)

    def check(self, setup: Setup) -> None:
        """Refuse models without the two heads, and a personal head that would be sent.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        for key in ("generic", "head"):
            layer = layer_of(setup.module, getattr(self, key))
            if not isinstance(layer, nn.Linear):
                raise ValueError(f"strategy.{key}={getattr(self, key)}: must be a torch.nn.Linear")
        sent = [entry.name for entry in setup.layout.entries if entry.name.startswith(f"{self.head}.")]
        if sent:
            raise ValueError(f"strategy.personal={list(self.personal)}: must name the personal head, {sent[0]} too")

    def local(self, problem: LocalProblem) -> Local:
        """Train with the logarithms of the client's numbers of samples among the values.

        Raises:
            ValueError: samples have no classes.
        """
        if problem.source.labels is None:
            raise ValueError("dataset: its samples have no classes, which FedRoD counts")
        size = layer_of(problem.module, self.generic).out_features
        classes = torch.from_numpy(problem.source.labels[problem.indices])
        counts = torch.bincount(classes, minlength=size).to(problem.start)  # type: ignore[arg-type]
        return super().local(replace(problem, values={"prior": counts.log()}))

    def adjust_loss(self, loss: Tensor, step: LocalStep) -> Tensor:
        """Both heads' losses instead of the module's."""
        generic, own, classes = step.outputs[self.generic], step.outputs[self.head], step.batch[1]
        balanced = cross_entropy(generic + step.values["prior"].to(generic.dtype), classes)
        return balanced + cross_entropy(generic.detach() + own, classes)
