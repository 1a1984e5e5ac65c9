"""`backend.portable`: the same bits on every x86-64 processor with AVX2, by limiting libraries to its instructions.

Libraries choose their kernels by the processor's instruction set, and read environment variables for it only once, when
they are loaded or first used. So the choice has to be made before torch is imported. Imports nothing heavy.
"""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import yaml

from flrl.config import PORTABLE

_NEEDED = ("avx2", "fma")
_chosen = False
"""Whether this process was made portable before it imported torch."""


def choose(portable: bool) -> None:
    """Apply `portable` to this process and those that it starts; prints the user's settings that it overrides.

    Call it before torch is imported; later it only checks.

    Args:
        portable: whether libraries are limited to the instructions that all x86-64 processors have.

    Raises:
        ValueError: this processor lacks them, or this process has imported torch with another choice.
    """
    global _chosen
    if not portable or "torch" in sys.modules:
        check(portable)
        return
    _check_processor()
    given = {name: os.environ[name] for name in PORTABLE if name in os.environ}
    other = [f"{name}={value}" for name, value in given.items() if value != PORTABLE[name]]
    if other:
        print(f"backend.portable=true overrides {', '.join(other)}", file=sys.stderr)
    os.environ.update(PORTABLE)
    _chosen = True


def inherit(portable: bool) -> None:
    """Apply the controller's choice to a worker that has not imported torch; `check` raises where that failed."""
    global _chosen
    if portable and "torch" not in sys.modules:
        os.environ.update(PORTABLE)
        _chosen = True


def check(portable: bool, *, device: str = "cpu") -> None:
    """Check that this process runs with `portable`.

    Args:
        portable: the setting.
        device: where the model trains.

    Raises:
        ValueError: it runs with another choice, or the processor or device does not allow it.
    """
    if not portable:
        if _chosen:
            raise ValueError(_TOO_LATE.format("false", "true"))
        return
    _check_processor()
    if not device.startswith("cpu"):
        raise ValueError(f"backend.portable=true: holds for processors, not for backend.device={device}")
    if any(os.environ.get(name) != value for name, value in PORTABLE.items()) or not (_chosen or _began_with_them()):
        raise ValueError(_TOO_LATE.format("true", "false"))


_TOO_LATE = (
    "backend.portable={}: this process has imported torch with backend.portable={}, and libraries look only once; "
    "start another process for it, in a sweep one for each value"
)


def check_trainer(portable: bool, trainer: Any) -> None:
    """Raise ValueError if `portable` is set and the trainer compiles code for the processor that it runs on."""
    if portable and getattr(trainer, "compile", False):
        raise ValueError("backend.portable=true: trainer.compile=true compiles for this processor; set one to false")


def of_run(folder: Path | str) -> bool:
    """Whether the run in a folder was made with `backend.portable=true`; False if there is no run."""
    saved = Path(folder) / ".hydra" / "config.yaml"
    if not saved.is_file():
        return False
    config = yaml.safe_load(saved.read_text()) or {}
    return bool((config.get("backend") or {}).get("portable"))


def _began_with_them() -> bool:
    """Whether this process was started with the environment variables, rather than given them after importing torch."""
    try:
        began = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(f"{name}={value}".encode() in began for name, value in PORTABLE.items())


def _check_processor() -> None:
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        raise ValueError(f"backend.portable=true: is for x86-64 processors, this is {machine}")
    flags = _flags()
    missing = [name for name in _NEEDED if flags and name not in flags]
    if missing:
        raise ValueError(f"backend.portable=true: this processor has no {' and no '.join(missing)}")


def _flags() -> set[str]:
    """The processor's flags from /proc/cpuinfo; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
