"""Top-k sparsification with error feedback: only the largest numbers are sent, the client keeps the rest.

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599. The numbers that a client does
not send, and the rounding errors of those that it sends, are added to its update when it next takes part.
"""

import math
from dataclasses import replace

import torch

from flrl.transforms.base import Transform
from flrl.types import ClientUpdate, Context, Metrics, Tensors


class TopK(Transform):
    """Sends the numbers of largest magnitude, in the model's dtype, with their indices as int32; reports how many.

    Args:
        share: share of the update's numbers that is sent, in (0, 1]; rounded up to a whole number.
        error_feedback: whether clients keep what they have not sent in their memory, in the model's dtype.

    Raises:
        ValueError: `share` is out of range.
    """

    encodes = True

    def __init__(self, *, share: float, error_feedback: bool = True) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"strategy.transforms.top_k.share={share}: must be above 0 and at most 1")
        self.share, self.error_feedback = share, error_feedback

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Set all but the largest numbers to zero, and keep the difference as the client's `error`."""
        whole = update.vectors["update"]
        if "error" in memory:
            whole = whole + memory["error"].to(whole.device)
        count = math.ceil(self.share * whole.numel())
        # A stable sort, so that the choice among equal numbers depends on their indices alone.
        places = whole.abs().argsort(descending=True, stable=True)[:count].to(torch.int32)
        values = whole[places.long()].to(context.layout.dtype)
        sent = torch.zeros_like(whole).index_copy_(0, places.long(), values.to(whole.dtype))
        payload = {**update.payload, "update": values.nbytes + places.nbytes}
        error = {"error": (whole - sent).to(values.dtype).cpu()} if self.error_feedback else {}
        update = replace(update, vectors={**update.vectors, "update": sent}, payload=payload)
        return update, error, {"sent": float(count)}
