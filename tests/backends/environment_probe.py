"""A process that sends its environment before it imports anything large; spawned by test_portable.py."""

import os
import sys
from typing import Any


def send_environment(names: list[str], line: Any) -> None:
    """Send these variables of the environment, and whether torch has been imported."""
    line.send(({name: os.environ.get(name) for name in names}, "torch" in sys.modules))
