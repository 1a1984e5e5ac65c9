import gc
import subprocess
import sys

import pytest

SCRIPT = """
import gc
from flrl.cli.importing import uncollected
with uncollected():
    assert not gc.isenabled()
    kept = [[] for _ in range(1000)]
assert gc.isenabled()
frozen = gc.get_freeze_count()
assert frozen >= 1000
with uncollected():
    assert gc.isenabled()
assert gc.get_freeze_count() == frozen
print("done")
"""


def test_only_the_first_imports_of_a_process_are_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.slow
def test_a_run_ends_without_a_word_about_leaks() -> None:
    """Modules that count what is left at the end must find nothing that the collector has been made to ignore."""
    script = "from flrl.cli.importing import uncollected\nwith uncollected():\n    import flrl.run"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert gc.isenabled()
