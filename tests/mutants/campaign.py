"""Applies mutants, one at a time, to a copy of the project, and runs the tests that are to notice each.

Each run of pytest is a fork of this process, which has paid for the imports of other packages; flrl and the tests are
imported anew from the copy. What is compiled is not kept: a changed file may have the size and the second of the other.
"""

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutants.table import ROOT, Mutant

LIMIT_S = 300.0
"""Longest that the tests of one mutant may take; one that takes longer hangs, and so is noticed."""
COPIED = ("flrl", "conf", "tests", "docs", "benchmarks", "README.md", "pyproject.toml")
_PASSED, _FAILED = 0, 1
_ALREADY_IMPORTED = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
_HEAVY = (
    *("torch", "torch._dynamo", "torch._refs", "torch.fx.experimental.proxy_tensor", "pytorch_lightning"),
    *("torchmetrics", "torchvision", "sklearn.datasets", "numba", "hydra", "rich", "hypothesis", "pytest"),
)
_PLUGINS = ("pytest_timeout", "_hypothesis_pytestplugin")
"""Of pytest; finding and loading the others takes longer than most tests."""


@dataclass(frozen=True)
class Outcome:
    """How a mutant ended.

    Attributes:
        mutant: which.
        killed: whether a test failed.
        seconds: how long that took.
        output: what pytest printed.
    """

    mutant: Mutant
    killed: bool
    seconds: float
    output: str


def run(chosen: Sequence[Mutant]) -> Iterator[Outcome]:
    """Check that all tests pass as things are, then try one mutant after the other.

    Raises:
        ValueError: a mutant's old text is not found, or pytest ended in another way than with passed or failed tests.
    """
    for mutant in chosen:
        mutant.changed()
    for name in _HEAVY:
        importlib.import_module(name)
    with TemporaryDirectory(prefix="flrl-mutants-") as folder:
        copy = Path(folder) / "flrl"
        _copy_to(copy)
        code, output = _pytest(copy, list(dict.fromkeys(test for mutant in chosen for test in mutant.tests)))
        if code != _PASSED:
            raise ValueError(f"the tests do not pass without any mutant:\n{output}")
        for mutant in chosen:
            target, started = copy / mutant.file, time.perf_counter()
            original = target.read_text()
            target.write_text(mutant.changed(copy))
            try:
                code, output = _pytest(copy, mutant.tests)
            finally:
                target.write_text(original)
            if code not in (_PASSED, _FAILED) and code > 0:
                raise ValueError(f"{mutant.file}: {mutant.name}: pytest ended with code {code}:\n{output}")
            yield Outcome(mutant, code != _PASSED, time.perf_counter() - started, output)


def _copy_to(copy: Path) -> None:
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)


def _pytest(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """The exit code, minus a signal's number where one ended it, and the output."""
    written = copy.with_name("output.txt")
    child = os.fork()
    if child == 0:
        _be_pytest(copy, tests, written)
    until = time.monotonic() + (LIMIT_S if len(tests) < 10 else 10 * LIMIT_S)
    ended = 0
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with all that it may have left behind
    if not ended:
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), written.read_text(errors="replace")


def _default_marks() -> str:
    """Which tests a plain `pytest` runs."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    options = shlex.split(given)
    return options[options.index("-m") + 1]


def _be_pytest(copy: Path, tests: Sequence[str], output: Path) -> None:
    """Become a run of pytest in the copy; never returns."""
    code = 3
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(copy)
        os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        sys.dont_write_bytecode = True
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.split(".")[0] in ("flrl", "tests")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        options = ["-x", "-q", "--tb=short", "-W", _ALREADY_IMPORTED, "-o", "addopts=", "-m", _default_marks()]
        options += [option for plugin in ("no:cacheprovider", *_PLUGINS) for option in ("-p", plugin)]
        code = int(importlib.import_module("pytest").main([*options, *tests]))
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
