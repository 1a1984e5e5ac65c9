"""One row for each compressor, which tests share. A new one joins here."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from flrl.layout import ParameterLayout
from flrl.transforms import (
    QSGD,
    Cast,
    Compressor,
    Eden,
    GradientPruning,
    Integers,
    PowerSGD,
    RandomK,
    Sign,
    TernGrad,
    Threshold,
    TopK,
)
from flrl.types import ClientUpdate, Tensors
from tests.transforms.given import context

COMPRESSORS: dict[str, Callable[[], Compressor]] = {
    "top_k": partial(TopK, share=0.3),
    "top_k, forgets": partial(TopK, share=0.3, error_feedback=False),
    "random_k": partial(RandomK, share=0.3),
    "random_k, remembers": partial(RandomK, share=0.3, scaled=False, error_feedback=True),
    "random_k, forgets": partial(RandomK, share=0.3, scaled=False),
    "threshold": partial(Threshold, threshold=0.1),
    "threshold, forgets": partial(Threshold, threshold=0.1, error_feedback=False),
    "qsgd": partial(QSGD, levels=4, per=3),
    "qsgd, whole": partial(QSGD, levels=1000, per="vector"),
    "int8": partial(Integers, bits=8),
    "int4": partial(Integers, bits=4, per="parameter"),
    "int5, rotated": partial(Integers, bits=5, rotate=True),
    "terngrad": partial(TernGrad, clip=2.5),
    "sign": Sign,
    "ef_sign": partial(Sign, per="parameter", error_feedback=True),
    "power_sgd": partial(PowerSGD, rank=1),
    "drive": Eden,
    "drive, remembers": partial(Eden, unbiased=False, error_feedback=True),
    "eden": partial(Eden, bits=3),
    "bfloat16": partial(Cast, error_feedback=True),
    "float16": partial(Cast, dtype="float16"),
    "gradient_pruning": partial(GradientPruning, share=0.3),
}


def flat(size: int) -> ParameterLayout:
    """A layout of so many trainable numbers, one parameter."""
    return ParameterLayout(nn.Linear(size, 1, bias=False) if size else nn.Identity())


def sent(
    compressor: Compressor,
    values: "Tensor | np.ndarray | list[float]",
    layout: ParameterLayout | None = None,
    *,
    seed: int = 0,
    memory: Tensors | None = None,
) -> tuple[ClientUpdate, Tensors]:
    """What a client sends of an update, and what it keeps."""
    vector = torch.as_tensor(values, dtype=torch.float64)
    update = ClientUpdate(3, 7.0, {"update": vector}, {}, 1, payload={"update": 4 * vector.numel()})
    where = context(round=seed, client_id=3, layout=layout or flat(vector.numel()))
    found, kept, _ = compressor.client(update, memory or {}, where)
    return found, kept
