"""Which code is the user's own: not flrl's, an installed package's, or Python's."""

import os
import site
import sys
import sysconfig
from functools import cache
from pathlib import Path


@cache
def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    folders += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent)]
    return tuple({os.path.join(form, "") for folder in folders for form in (folder, os.path.realpath(folder))})


def is_own_file(file: str) -> bool:
    """Whether a file holds the user's own code; names like `<string>` or `<frozen ...>` do not count."""
    if file.startswith("<") or "/site-packages/" in file or "/dist-packages/" in file:
        return False
    return not file.startswith(_installed()) and not os.path.realpath(file).startswith(_installed())


@cache
def is_own(module: str) -> bool:
    """Whether a module of this name is the user's own code.

    Args:
        module: the `__module__` of a class or function.
    """
    path = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" and path is None:  # a notebook
        return True
    return path is not None and is_own_file(path)
