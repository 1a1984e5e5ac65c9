"""A process that says what it has been told before it imports anything large; spawned by test_portable.py."""

import os
import sys
from typing import Any


def tell(names: list[str], line: Any) -> None:
    """Send these variables of the environment, and whether torch is there."""
    line.send(({name: os.environ.get(name) for name in names}, "torch" in sys.modules))
