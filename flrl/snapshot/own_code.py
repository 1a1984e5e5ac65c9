"""Which code is a user's own: neither flrl, nor an installed library, nor Python's."""

import sys
import sysconfig
from functools import cache
from pathlib import Path

_LIBRARIES = tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib")})


@cache
def is_own(module: str) -> bool:
    """Whether a module of this name is somebody's own code.

    Args:
        module: as in `__module__` of a class or function.
    """
    if module.split(".")[0] == "flrl":
        return False
    if module == "__main__":  # in a notebook it has no file
        return True
    found = sys.modules.get(module)
    path = getattr(found, "__file__", None)
    return path is not None and not str(Path(path).resolve()).startswith(_LIBRARIES)
