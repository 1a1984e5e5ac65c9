"""Soteria: the update of one dense layer is pruned where its input gives most of the samples away.

Sun, Li, Wang, Yang, Li, Chen, "Soteria: Provable Defense against Privacy Leakage in Federated Learning from
Representation Perspective", CVPR 2021, arXiv 2012.06043. The representation r is the input of the defended layer; r_i
reaches the server as column i of the gradient of the layer's weight. Pruned are the i of largest |r_i| / ||dr_i/dx||:
without them the reconstruction is furthest off for the least loss. Of several samples the paper's code sums
||dr_i/dx|| / |r_i|, which a single r_i = 0 makes infinite; here both are summed first. What other layers give away is
not hidden: a dense layer before the defended one can be inverted as ever.
"""

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flrl.transforms.base import AtClient, Transform
from flrl.types import ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


class Soteria(Transform):
    """Sets columns of a dense layer's weight update to zero; reports how many as `pruned`.

    Each of the layer's inputs costs a backward pass over the samples that are measured.

    Args:
        layer: name of a `torch.nn.Linear` in the module, as in `net.5`.
        share: share of the layer's inputs that is pruned, in (0, 1); rounded up to a whole number.
        samples: at most so many samples of a client are measured, the first of its fixed order.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, layer: str, share: float, samples: int = 64) -> None:
        if not 0 < share < 1:
            raise ValueError(f"strategy.transforms.soteria.share={share}: must be above 0 and below 1")
        if samples < 1:
            raise ValueError(f"strategy.transforms.soteria.samples={samples}: must be at least 1")
        self.layer, self.share, self.samples = layer, share, samples

    def check(self, setup: "Setup") -> None:
        """Refuse a module without the layer.

        Raises:
            ValueError: it has no dense layer of this name whose weight is trained and sent.
        """
        sent = {entry.name for entry in setup.layout.entries if entry.kind == "trainable"}
        dense = [name for name, part in setup.module.named_modules() if isinstance(part, nn.Linear)]
        dense = [name for name in dense if f"{name}.weight" in sent]
        if self.layer not in dense:
            raise ValueError(
                f"strategy.transforms.soteria.layer={self.layer!r}: must be a torch.nn.Linear whose weight is sent: "
                f"{', '.join(dense) or 'the model has none'}"
            )

    def measure(self, at_client: AtClient) -> Tensors:
        """The places of the layer's inputs that are pruned, int64.

        Raises:
            ValueError: the layer is not called with one vector for each sample, or samples have no derivative.
        """
        size: Tensor | float = 0.0
        slope: Tensor | float = 0.0
        left = self.samples
        for batch in at_client.batches:
            inputs, outputs = self._represented(at_client, batch, left)
            slopes = [torch.autograd.grad(r.sum(), inputs, retain_graph=True)[0] for r in outputs.unbind(1)]
            slope = slope + torch.stack([each.flatten(1).norm(dim=1).sum() for each in slopes])
            size = size + outputs.detach().abs().sum(0)
            left -= len(inputs)
            if left <= 0:
                break
        assert isinstance(size, Tensor)
        assert isinstance(slope, Tensor)
        gain = torch.where(size > 0, size / slope, size)  # an input that is zero for all samples has a zero column
        return {"places": gain.argsort(descending=True, stable=True)[: ceil(self.share * len(gain))]}

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Set the columns to zero."""
        entry = next(entry for entry in context.layout.entries if entry.name == f"{self.layer}.weight")
        pruned = update.vectors["update"].clone()
        pruned[entry.slice].view(entry.shape)[:, context.measured["places"]] = 0
        vectors = {**update.vectors, "update": pruned}
        return replace(update, vectors=vectors), memory, {"pruned": float(len(context.measured["places"]))}

    def _represented(self, at_client: AtClient, batch: Any, most: int) -> tuple[Tensor, Tensor]:
        """The first `most` samples of a batch, with gradients, and the layer's inputs `[samples, inputs]` for them."""
        if not isinstance(batch, tuple | list) or not isinstance(batch[0], Tensor) or not batch[0].is_floating_point():
            raise ValueError("strategy.transforms.soteria: needs batches whose first part are floating-point inputs")
        inputs = batch[0][:most].detach().clone().requires_grad_()
        seen: list[Tensor] = []
        layer = at_client.module.get_submodule(self.layer)
        hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            at_client.call((inputs, *(part[:most] for part in batch[1:])))
        finally:
            hook.remove()
        if not seen or seen[0].shape[:-1] != inputs.shape[:1] or not seen[0].requires_grad:
            raise ValueError(
                f"strategy.transforms.soteria.layer={self.layer!r}: must be called with one vector for each sample, "
                "which depends on the inputs"
            )
        return inputs, seen[0]
