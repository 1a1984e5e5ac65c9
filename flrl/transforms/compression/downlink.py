"""The downlink: the server's model is encoded by a compressor's code, and clients train from what it decodes to.

Caldas, Konečný, McMahan, Talwalkar, "Expanding the Reach of Federated Learning by Reducing Client Resource
Requirements", 2018, arXiv 1812.07210, section 3, compresses the model that is sent. Clients keep nothing for it, so the
model itself is encoded, and not what has changed since a round in which a client may not have taken part. With error
feedback the server adds to the next model what it has not sent of this one: Tang, Yu, Lian, Zhang, Liu, "DoubleSqueeze:
Parallel Stochastic Gradient Descent with Double-Pass Error-Compensated Compression", ICML 2019, arXiv 1905.05957.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.transforms.base import Transform
from flrl.transforms.compression.base import Compressor
from flrl.types import Broadcast, Context, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


class Downlink(Transform):
    """Encodes the model that is sent to clients; what else a strategy sends them is sent whole.

    Args:
        codec: a compressor; its own error feedback does not matter here, and it starts anew in every round.
        error_feedback: whether the server keeps what it has not sent, in the model's dtype.
    """

    def __init__(self, *, codec: Compressor, error_feedback: bool = True) -> None:
        self.codec, self.error_feedback = codec, error_feedback

    def check(self, setup: "Setup") -> None:
        """Refuse a second downlink, strategies that send no model, and errors that grow or have no round.

        Raises:
            ValueError: one of these.
        """
        others = [n for n, part in setup.transforms.items() if isinstance(part, Downlink) and part is not self]
        if others:
            raise ValueError(f"strategy.transforms.{others[0]}: the model is encoded once, leave one of the two out")
        name = type(setup.strategy).__name__
        if not setup.strategy.sends_model or setup.strategy.pools_samples:
            raise ValueError(f"strategy.transforms.downlink: {name} sends clients no model to encode")
        if self.error_feedback and not self.codec.contracts:
            coder = type(self.codec).__name__
            raise ValueError(
                f"strategy.transforms.downlink.error_feedback=true: with these settings {coder} is no contraction, so "
                "that errors could grow: set it to false"
            )
        if self.error_feedback and setup.strategy.schedule.overlaps:
            schedule = type(setup.strategy.schedule).__name__
            raise ValueError(
                f"strategy.transforms.downlink.error_feedback=true: rounds of {schedule} have several models: "
                "set it to false"
            )

    def broadcast(self, broadcast: Broadcast, state: Tensors, context: Context) -> tuple[Broadcast, Tensors]:
        """What the model's buffer decodes to, in its dtype, with the buffer; and the error.

        Raises:
            ValueError: the strategy sends the model in another way, or it is not finite.
        """
        if not broadcast.payload.get("vector"):
            raise ValueError("strategy.transforms.downlink: this strategy sends clients models of another kind")
        model = broadcast.vector.detach().cpu().double()
        whole = (model + state["error"].double() if "error" in state else model).numpy()
        if not np.isfinite(whole).all():
            raise ValueError("strategy.transforms.downlink: the model is not finite")
        buffer = torch.from_numpy(self.codec.encode(whole, {}, context).buffer)
        sent = self.decode(buffer, context.layout)
        kept = {"error": torch.from_numpy(whole - sent.double().numpy()).to(sent.dtype)} if self.error_feedback else {}
        payload = {**broadcast.payload, "vector": buffer.nbytes}
        return replace(broadcast, vector=sent, payload=payload, encoded={"vector": buffer}), kept

    def decode(self, buffer: Tensor, layout: ParameterLayout) -> Tensor:
        """The model that a buffer says, in its dtype, shape `[layout.size]`."""
        return torch.from_numpy(self.codec.decode(buffer.numpy(), layout)).to(layout.dtype)
