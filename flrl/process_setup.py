"""What is set once in each process that trains: threads, allocator, the model's device."""

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch

from flrl.bound_model import BoundModel


def check_settings(threads: int, device: str) -> None:
    """Raise ValueError for settings of a backend that cannot be met here."""
    if threads < 1:
        raise ValueError(f"backend.threads={threads}: must be at least 1")
    _check_device("backend.device", device)


def _check_device(key: str, device: str) -> None:
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"{key}={device}: must be cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"{key}={device}: torch finds no CUDA device here")


def prepare(model: Any, *, threads: int, device: str, personal: Sequence[str] = ()) -> BoundModel:
    """Set this process's threads, move a LightningModule to its device and bind it to a vector.

    Args:
        model: the LightningModule.
        threads: intra-op threads; the bits of a run depend on them.
        device: "cpu", "cuda", "cuda:1", ...
        personal: patterns of the names of what stays with its client.
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1")
    _check_device("device", device)
    torch.set_num_threads(threads)
    _keep_freed_memory()
    return BoundModel(model.to(device), personal)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def _keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed, up to 2 GiB: the same activations are asked for batch after batch.

    Memory that is mapped anew each time has to be zeroed page by page, two fifths of a CNN's evaluation. Whoever has
    tuned glibc through the environment is left alone, and so are other C libraries.
    """
    tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not tuned else None
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, 2**31 - 1):
            mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that older versions take
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
