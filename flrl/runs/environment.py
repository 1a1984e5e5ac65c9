"""The environment that a run's bits depend on besides its configuration: code, files, libraries, processor."""

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import flrl
from flrl.config import PORTABLE
from flrl.own_code import is_own_file

_LIBRARIES = ["torch", "torchvision", "torchmetrics", "pytorch-lightning", "numpy", "numba", "safetensors"]
_LIBRARIES += ["hydra-core", "omegaconf"]
_OF_BITS = ("flrl", "torch", "numpy")
_LEVELS = {  # of x86-64: the instruction sets that each adds to the one before
    "x86-64-v2": {"sse42", "popcnt", "ssse3"},
    "x86-64-v3": {"avx2", "fma", "bmi2", "f16c"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
_SPELT = {"fma3": "fma", "bmi1": "bmi", "pni": "sse3"}
_GIT_S = 5.0
_GROUPS = ("dataset", "partition", "model", "strategy", "trainer", "adversary", "devices")
_OF_FILES = ("file", "path")


def environment(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that this module records, for this process; can be written as JSON.

    Args:
        config: the run's, as plain dicts and lists, whose files are recorded; None: without files.
    """
    return {
        "versions": versions(),
        "git": repository(Path.cwd()),
        "sources": sources(),
        "files": files({} if config is None else config),
        "processor": processor(),
        "libraries": libraries(),
    }


def versions() -> dict[str, str]:
    """The versions of flrl, Python and the libraries that compute."""
    found = {"flrl": flrl.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # installed without metadata
            continue
    return found


def repository(folder: Path) -> dict[str, Any] | None:
    """The current commit of a folder's repository, and whether tracked files differ from it; None without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command, without locks, prompts or monitors; None if it fails or takes more than `_GIT_S`."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, env=quiet, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def sources() -> dict[str, str]:
    """SHA-256 of each imported file of the user's own, by name; files of flrl and of installed packages are left out.

    A file is named relative to the entry of `sys.path` that contains it, else to the working directory.
    """
    return dict(sorted((_named(path), _sha256(path)) for path in own_files()))


def own_files() -> list[Path]:
    """The imported files of the user's own: of neither flrl nor an installed package."""
    found: dict[Path, None] = {}
    for name, module in sorted(sys.modules.items()):
        root = getattr(sys.modules.get(name.partition(".")[0]), "__file__", None)
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or (isinstance(root, str) and not is_own_file(root)):
            continue
        path = Path(os.path.abspath(file))
        if path.is_file() and is_own_file(file):
            found[path] = None
    return [*found]


def files(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Path and SHA-256 of each file that a setting `file` or `path` names, by the setting's full key.

    Those of groups that results follow from, in own parts too; a setting that names no file that is there is left out.
    """
    named = (pair for group in _GROUPS for pair in _files_in(config.get(group), group))
    return {key: {"path": path, "sha256": _sha256(Path(path))} for key, path in named if Path(path).is_file()}


def _files_in(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name in _OF_FILES and isinstance(value, str):
                yield f"{key}.{name}", value
            yield from _files_in(value, f"{key}.{name}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _files_in(value, f"{key}.{number}")


def _named(path: Path) -> str:
    entries = [Path(os.path.abspath(entry)) for entry in sys.path]
    above = [entry for entry in entries if entry in path.parents]
    nearest = max(above or [Path.cwd()], key=lambda entry: len(entry.parts))
    return path.relative_to(nearest).as_posix() if nearest in path.parents else str(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def processor() -> dict[str, Any]:
    """What kernels are chosen by: torch's CPU capability, the processor's model, level and instruction sets."""
    described = _described_by_linux()
    flags = _flags(described)
    level = "x86-64" if platform.machine() in ("x86_64", "AMD64") else platform.machine()
    has = True
    for name, needed in _LEVELS.items():
        has = has and level.startswith("x86-64") and needed <= set(flags)
        level = name if has else level
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "model": described.get("model name") or platform.processor() or platform.machine(),
        "vendor": described.get("vendor_id"),
        "level": level,
        "flags": flags,
    }


def _described_by_linux() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    first = path.read_text(errors="replace").split("\n\n")[0] if path.exists() else ""
    pairs = [line.partition(":") for line in first.splitlines()]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _flags(described: Mapping[str, str]) -> list[str]:
    """The processor's instruction sets, in one spelling, from torch where it can list them, else from /proc/cpuinfo."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    names = [name for name, has in ask().items() if has is True] if ask else described.get("flags", "").split()
    spelt = {_SPELT.get(name, name.replace("_", "")) for name in names}
    wanted = ("avx", "amx", "fma", "sse", "ssse", "f16c", "bmi", "popcnt", "sve", "neon", "bf16", "i8mm")
    return sorted(name for name in spelt if name.startswith(wanted))


def libraries() -> dict[str, Any]:
    """Settings of the libraries that compute: threads, BLAS, and environment variables that choose kernels."""
    built = torch.__config__.show().splitlines()
    blas = next((part for part in " ".join(built).split() if part.startswith("BLAS_INFO=")), "BLAS_INFO=unknown,")
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "blas": blas.removeprefix("BLAS_INFO=").rstrip(","),
        "torch_built_with": [line.strip(" -") for line in built[1:] if "Build settings" not in line],
        **{name: os.environ.get(name) for name in PORTABLE},
    }


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between a recorded environment and this one that bits may depend on, a sentence each."""
    found = []
    for name, known in recorded.get("sources", {}).items():
        current = now["sources"].get(name) or _found_on_path(name)
        if current is None:
            found.append(f"{name}, which the run imported, is not found here")
        elif current != known:
            found.append(f"{name} is not what the run imported (SHA-256 {known[:12]}..., now {current[:12]}...)")
    for key, file in recorded.get("files", {}).items():
        here = now.get("files", {}).get(key)
        if here is None:
            found.append(f"{key}={file['path']}, which the run read, is not found here")
        elif here["sha256"] != file["sha256"]:
            known, current = file["sha256"], here["sha256"]
            found.append(
                f"{key}={here['path']} is not what the run read (SHA-256 {known[:12]}..., now {current[:12]}...)"
            )
    for name in _OF_BITS:
        had, has = (record.get("versions", {}).get(name) for record in (recorded, now))
        if had is not None and had != has:
            found.append(f"the run had {name} {had}, this is {has}: expect other bits")
    return found + _other_processor(recorded, now)


def _found_on_path(name: str) -> str | None:
    candidates = [Path(entry, name) for entry in ("", *sys.path)]
    return next((_sha256(path) for path in candidates if path.is_file()), None)


def _other_processor(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if "processor" not in recorded:
        return []
    had, has = recorded["processor"], now["processor"]
    portable, is_portable = _is_portable(recorded), _is_portable(now)
    if portable and is_portable:
        return []
    if portable != is_portable:
        return [f"the run had backend.portable={portable}, this is {is_portable}: expect other bits".lower()]
    if any(had.get(name) != has[name] for name in ("capability", "vendor", "flags")):
        kinds = [f"{kind['model']} ({kind['level']}, torch uses {kind['capability']})" for kind in (had, has)]
        return [
            f"another kind of processor: the run had {kinds[0]}, this is {kinds[1]}: expect other bits; "
            "backend.portable=true avoids it"
        ]
    settings = {name: (recorded["libraries"].get(name), now["libraries"][name]) for name in PORTABLE}
    return [
        f"the run had {name}={was or 'unset'}, this is {new or 'unset'}: expect other bits"
        for name, (was, new) in settings.items()
        if was != new
    ]


def _is_portable(record: Mapping[str, Any]) -> bool:
    return all(record.get("libraries", {}).get(name) == value for name, value in PORTABLE.items())
