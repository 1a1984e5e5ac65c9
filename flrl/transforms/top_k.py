"""Top-k sparsification with error feedback: the largest numbers are sent, the rest is kept for the next time.

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599. What a client does not send, and
what rounding to the model's dtype takes away, is added to its update when it next takes part.
"""

import math
from dataclasses import replace

import torch

from flrl.transforms.base import Context, Transform
from flrl.types import ClientUpdate, Metrics, Tensors


class TopK(Transform):
    """Sends the largest numbers of the update, in the model's dtype, with their places as int32; reports how many.

    Args:
        share: of the update's numbers that is sent, in (0, 1]; rounded up to whole numbers.
        error_feedback: clients remember what they have not sent, in the model's dtype.
    """

    def __init__(self, *, share: float, error_feedback: bool = True) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"strategy.transforms.top_k.share={share}: must be above 0 and at most 1")
        self.share, self.error_feedback = share, error_feedback

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Send the largest, remember the rest."""
        whole = update.vectors["update"]
        if "error" in memory:
            whole = whole + memory["error"].to(whole.device)
        count = math.ceil(self.share * whole.numel())
        # A stable sort, so that which of several equal numbers are sent depends on their places alone.
        places = whole.abs().argsort(descending=True, stable=True)[:count].to(torch.int32)
        values = whole[places.long()].to(context.layout.dtype)
        sent = torch.zeros_like(whole).index_copy_(0, places.long(), values.to(whole.dtype))
        payload = {**update.payload, "update": values.nbytes + places.nbytes}
        error = {"error": (whole - sent).to(values.dtype).cpu()} if self.error_feedback else {}
        update = replace(update, vectors={**update.vectors, "update": sent}, payload=payload)
        return update, error, {"sent": float(count)}
