"""Rounding to half precision."""

from typing import Literal

import numpy as np
import torch

from flrl.layout import ParameterLayout
from flrl.transforms.compression.base import TrainableCompressor
from flrl.transforms.compression.codecs import Reader, Writer
from flrl.types import Context, Metrics, Tensors

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Cast(TrainableCompressor):
    """Sends each number in two bytes, rounded to nearest: |v - C(v)| <= 2^-8 |v| for bfloat16, 2^-11 |v| for float16.

    A number beyond 65,504 is infinite in float16, and its update is rejected; below 6e-5 its precision falls.

    Args:
        dtype: "bfloat16" or "float16".
        error_feedback: whether clients keep what rounding has taken.

    Raises:
        ValueError: `dtype` is another one.
    """

    contracts = True

    def __init__(self, *, dtype: Literal["bfloat16", "float16"] = "bfloat16", error_feedback: bool = False) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"strategy.transforms.cast.dtype={dtype!r}: must be 'bfloat16' or 'float16'")
        super().__init__(error_feedback=error_feedback)
        self.dtype = DTYPES[dtype]

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """The numbers."""
        writer.floats(values, self.dtype)
        return {}, {}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """The numbers."""
        return reader.floats(layout.num_trainable, self.dtype)
