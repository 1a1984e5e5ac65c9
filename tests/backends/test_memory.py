"""Large blocks are kept for the next batch instead of being mapped anew."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from flrl.process_setup import prepare
from tests.toys import Linear
prepare(Linear(), threads=1, device="cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).add_(1)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(3)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.slow
@pytest.mark.parametrize("tuned", [False, True])
def test_freed_memory_is_kept_unless_the_environment_tunes_it(tuned: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if tuned:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    faults = int(done.stdout)
    assert faults > 10 if tuned else faults < 10
