"""Federated dropout: each client is sent, trains and sends back a model with fewer units in its layers.

Caldas, Konečný, McMahan, Talwalkar, "Expanding the Reach of Federated Learning by Reducing Client Resource
Requirements", 2018, arXiv 1812.07210, section 4: a fixed number of units of each layer is left out, drawn anew for
each client and round, so that all clients' models are of one size.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flrl.aggregation import Mean
from flrl.layout import ParameterLayout
from flrl.seeding import seed_for
from flrl.transforms.base import Transform
from flrl.transforms.compression.downlink import Downlink
from flrl.types import Broadcast, ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


class FederatedDropout(Transform):
    """Leaves out units of layers: rows of a layer's weight, its biases, and columns of the next layer's weight.

    At a client what is left out is 0. That is a model without these units where a unit with weights of 0 has an output
    of 0 and no gradient, as with ReLU; what a client learns of them otherwise is not sent. Units follow from a seed
    that both sides know. Updates are divided by the probability that a number is sent, so that their mean is unbiased
    over the draws.

    Args:
        layers: by each layer of which units are left out, the layer that its outputs go to: `{net.1: net.3}`; dense or
            convolutional ones, whose units are the first axis of the weight.
        share: share of each layer's units that stays, in (0, 1); rounded up to a whole number.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, layers: Mapping[str, str], share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise ValueError(f"strategy.transforms.federated_dropout.share={share}: must be above 0 and below 1")
        if not layers:
            raise ValueError("strategy.transforms.federated_dropout.layers={}: must name a layer at least")
        self.layers, self.share = dict(layers), share

    def check(self, setup: "Setup") -> None:
        """Refuse layers that the model does not have, what encodes updates or the model, noise after it, and rules.

        A rule other than the mean would take the zeros of what was left out for updates.

        Raises:
            ValueError: there is such a thing.
        """
        shapes = {entry.name: entry.shape for entry in setup.layout.entries if entry.kind == "trainable"}
        for layer, then in self.layers.items():
            weight, after = (shapes.get(f"{name}.weight", ()) for name in (layer, then))
            if len(weight) < 2 or len(after) < 2 or after[1] % weight[0]:
                raise ValueError(
                    f"strategy.transforms.federated_dropout.layers={{{layer}: {then}}}: must be two layers with "
                    "weights that are sent, the second of which takes the units of the first"
                )
        if not isinstance(setup.aggregator, Mean):
            raise ValueError(
                f"strategy.aggregator={type(setup.aggregator).__name__}: takes what federated_dropout has left out for "
                "zeros; federated_dropout needs aggregator=mean"
            )
        left_out = False
        for name, part in setup.transforms.items():
            left_out = left_out or part is self
            if part.fills_zeros and left_out:
                raise ValueError(
                    f"strategy.transforms.{name}: fills the numbers that federated_dropout has left out: it cannot "
                    "come after it"
                )
            if part.encodes or isinstance(part, Downlink):
                raise ValueError(
                    f"strategy.transforms.{name}: encodes all numbers, of which federated_dropout leaves some out: "
                    "leave one of the two out"
                )

    def broadcast(self, broadcast: Broadcast, state: Tensors, context: Context) -> tuple[Broadcast, Tensors]:
        """Count the smaller model; which one a client gets, `received` says."""
        payload = {**broadcast.payload, "vector": self._nbytes(context.layout)}
        return replace(broadcast, payload=payload), {}

    def received(self, vector: Tensor, client_id: int, context: Context) -> Tensor:
        """The model with zeros where the client's has nothing."""
        return vector * (self.shares(client_id, context) > 0).to(vector)

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Send what belongs to the client's model, divided by the probability that it does."""
        shares = self.shares(update.client_id, context).to(update.vectors["update"].device)
        sent = torch.where(shares > 0, update.vectors["update"] / shares.clamp(min=1e-12), 0.0)
        payload = {**update.payload, "update": self._nbytes(context.layout)}
        return replace(update, vectors={**update.vectors, "update": sent}, payload=payload), memory, {}

    def shares(self, client_id: int, context: Context) -> Tensor:
        """The probability that each number is in a client's model, 0 where it is not in this one's, `[layout.size]`."""
        found = torch.ones(context.layout.size, dtype=torch.float64)
        seed = seed_for(context.seed, context.round, client_id, "transforms/federated_dropout/units")
        generator = torch.Generator().manual_seed(seed)
        parts = {entry.name: (entry.slice, entry.shape) for entry in context.layout.entries}
        for layer, then in self.layers.items():
            units = parts[f"{layer}.weight"][1][0]
            kept = torch.zeros(units, dtype=torch.float64)
            count = math.ceil(self.share * units)
            kept[torch.randperm(units, generator=generator)[:count]] = count / units
            for name in (f"{layer}.weight", f"{layer}.bias"):
                if name in parts:
                    where, shape = parts[name]
                    found[where].view(units, -1).mul_(kept[:, None])
            where, shape = parts[f"{then}.weight"]
            inputs = kept.repeat_interleave(shape[1] // units)
            found[where].view(shape[0], shape[1], -1).mul_(inputs[None, :, None])
        return found

    def _nbytes(self, layout: ParameterLayout) -> int:
        """Bytes of a client's model in its own dtypes: as many for all clients and rounds."""
        context = Context(0, 0, layout, (), 0.0, torch.Generator())
        sent = self.shares(0, context) > 0
        return sum(int(sent[e.slice].sum()) * getattr(torch, e.dtype).itemsize for e in layout.entries)
