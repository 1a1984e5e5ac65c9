"""The device under test, and arithmetic there that can be compared with a CPU's."""

import os
from collections.abc import Iterator

import pytest
import torch

ASKED = os.environ.get("FLRL_GPU_TESTS_DEVICE", "cuda")


@pytest.fixture
def device() -> Iterator[str]:
    """Where models train. Convolutions round as the rest does there, and not to TF32."""
    if ASKED.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here; FLRL_GPU_TESTS_DEVICE=cpu tries these tests without one")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield ASKED
    torch.backends.cudnn.allow_tf32 = before
