"""Settings of each process that trains: threads, allocator, the model's device."""

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch

from flrl.bound_model import BoundModel
from flrl.layout import batchnorm_layers


def check_settings(threads: int, device: str, key: str = "backend.device") -> None:
    """Raise ValueError if a backend's settings are invalid, or there is no such device; `key` is the device's name."""
    if threads < 1:
        raise ValueError(f"backend.threads={threads}: must be at least 1")
    _check_device(key, device)


def _check_device(key: str, device: str) -> None:
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"{key}={device}: must be cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"{key}={device}: torch finds no CUDA device here")


def prepare(
    model: Any, *, threads: int, device: str, personal: Sequence[str] = (), batchnorm: str = "average"
) -> BoundModel:
    """Set this process's threads, move a LightningModule to its device and bind it to a vector.

    Args:
        model: the LightningModule.
        threads: intra-op threads; the bits of a run depend on their number.
        device: "cpu", "cuda", "cuda:1", ...
        personal: patterns of the names of parameters and buffers that stay with their client.
        batchnorm: `Strategy.batchnorm`; "frozen" sets BatchNorm layers to evaluation mode, for good.

    Raises:
        ValueError: a setting is invalid, or as for `BoundModel`.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1")
    _check_device("device", device)
    torch.set_num_threads(threads)
    _keep_freed_memory()
    if batchnorm == "frozen":
        for layer in batchnorm_layers(model).values():
            layer.eval()
    return BoundModel(model.to(device), personal)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 2 GiB, as every batch needs memory of the same sizes.

    Memory that is mapped anew each time has to be zeroed page by page, which takes two fifths of a CNN's evaluation.
    Nothing is changed if environment variables tune glibc, or with other C libraries.
    """
    tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not tuned else None
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, 2**31 - 1):
            mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that older versions take
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
