"""PowerSGD: each weight matrix as a product of two thin ones.

Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", NeurIPS
2019, arXiv 1905.13727, algorithm 1, at each client by itself: P = orthogonalised M Q, Q = M^T P, and P Q^T is sent as P
and Q. Each client starts from the Q that it sent last time, one step of a power iteration.
"""

from collections.abc import Iterator

import numpy as np
import torch

from flrl.layout import Entry, ParameterLayout
from flrl.transforms.compression.base import TrainableCompressor
from flrl.transforms.compression.codecs import Reader, Writer
from flrl.types import Context, Metrics, Tensors


class PowerSGD(TrainableCompressor):
    """Sends a product of rank r of every parameter with two axes or more, others whole, in their own dtypes.

    The first axis is the matrix's rows, all others its columns. A matrix for which r (rows + columns) numbers are no
    fewer than it has is sent whole.

    Args:
        rank: r, at least 1.
        error_feedback: whether clients keep what they have not sent.
        warm_start: whether clients keep Q; else it is drawn anew.

    Raises:
        ValueError: `rank` is below 1.
    """

    contracts = True

    def __init__(self, *, rank: int = 2, error_feedback: bool = True, warm_start: bool = True) -> None:
        if rank < 1:
            raise ValueError(f"strategy.transforms.power_sgd.rank={rank}: must be at least 1")
        super().__init__(error_feedback=error_feedback)
        self.rank, self.warm_start = rank, warm_start

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """P and Q of each matrix, other parameters as they are."""
        known = memory["q"].double() if self.warm_start and "q" in memory else None
        kept, start = [], 0
        for entry, shape in self._parts(context.layout):
            dtype = getattr(torch, entry.dtype)
            if shape is None:
                writer.floats(values[entry.slice], dtype)
                continue
            matrix = torch.from_numpy(values[entry.slice].copy()).view(shape)
            drawn = torch.randn(shape[1], self.rank, generator=context.generator, dtype=torch.float64)
            if known is not None:
                q = known[start : start + drawn.numel()].view_as(drawn)
                drawn = torch.where(q.norm(dim=0) > 0, q, drawn)  # of what was zero, there is nothing to start from
            start += drawn.numel()
            p = torch.linalg.qr(matrix @ drawn).Q.to(dtype)
            q = (matrix.T @ p.double()).to(dtype)
            writer.floats(p.double().numpy().reshape(-1), dtype)
            writer.floats(q.double().numpy().reshape(-1), dtype)
            kept.append(q.reshape(-1).to(context.layout.dtype))
        return ({"q": torch.cat(kept)} if kept and self.warm_start else {}), {}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """The products, other parameters as they are."""
        found = np.zeros(layout.num_trainable)
        for entry, shape in self._parts(layout):
            dtype = getattr(torch, entry.dtype)
            if shape is None:
                found[entry.slice] = reader.floats(entry.size, dtype)
                continue
            p = reader.floats(shape[0] * self.rank, dtype).reshape(shape[0], self.rank)
            q = reader.floats(shape[1] * self.rank, dtype).reshape(shape[1], self.rank)
            product = found[entry.slice].reshape(shape)
            for column in range(self.rank):  # not a matrix product, whose last bits are a library's choice
                product += p[:, column, None] * q[None, :, column]
        return found

    def _parts(self, layout: ParameterLayout) -> Iterator[tuple[Entry, tuple[int, int] | None]]:
        """The trainable parameters, each with the shape of its matrix; None where it is sent whole."""
        for entry in layout.entries:
            if entry.kind != "trainable":
                continue
            rows = entry.shape[0] if len(entry.shape) > 1 else 0
            columns = entry.size // rows if rows else 0
            yield entry, (rows, columns) if self.rank * (rows + columns) < entry.size and rows else None
