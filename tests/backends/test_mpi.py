"""The MPI path in the default suite: the command that docs print, what is left in shared memory, and MPI alone."""

import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flrl.backends.mpi import world
from tests.backends.test_digest_table import ROOT, outcome


def printed() -> str:
    """The first command of docs/backends.md that starts MPI."""
    return re.findall(r"^mpiexec .*$", (ROOT / "docs" / "backends.md").read_text(), re.MULTILINE)[0]


def test_the_default_job_on_three_ranks_as_docs_print_it_is_the_serial_one(cli: Any, tmp_path: Path) -> None:
    alone = cli("log_clients=true", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    command = printed()
    assert command == "mpiexec --oversubscribe -n 3 flrl-train backend=mpi"
    root = " --allow-run-as-root" if os.geteuid() == 0 else ""
    command = command.replace("--oversubscribe", f"--oversubscribe{root}") + " log_clients=true hydra.run.dir=three"
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("OMPI_", "PRTE_", "PMIX_"))}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command.split(), env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert outcome(tmp_path / "three") == outcome(tmp_path / "alone")
    assert json.loads((tmp_path / "three" / "summary.json").read_text())["digest"] in done.stdout
    assert sorted(path.name for path in (tmp_path / "three").glob("rank*.log")) == ["rank1.log", "rank2.log"]


def test_alone_mpi_is_not_started(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI would leave 16 MB in /dev/shm, every time."""
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # importing it is an error
    done = cli("backend=mpi", "strategy.rounds=1", "logger=none", "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")


class Comm:
    """One of two processes of a machine, the other one of which may not have opened everything yet."""

    rank = 1

    def __init__(self, size: int, other: bool = True) -> None:
        self.size, self.other = size, other

    def allgather(self, done: bool) -> list[bool]:
        return [self.other, done]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /dev/shm")
def test_segments_lose_their_names_once_everybody_has_opened_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = world._opened_segments  # this process may have some of its own
    monkeypatch.setattr(world, "_opened_segments", lambda: {p: i for p, i in opened().items() if "flrl-test" in p})
    job = f"/dev/shm/sm_segment.flrl-test.{os.getuid()}.{os.getpid()}"
    own, other = Path(f"{job}.1"), Path(f"{job}.0")
    try:
        maps = []
        for path in (own, other):
            path.write_bytes(bytes(4096))
            with path.open("r+b") as file:
                maps.append(mmap.mmap(file.fileno(), 0))
        world._unname_segments(Comm(2), Comm(2, other=False))  # type: ignore[arg-type]
        world._unname_segments(Comm(2), Comm(3))  # type: ignore[arg-type]
        assert (own.exists(), other.exists()) == (True, True)
        world._unname_segments(Comm(2), Comm(2))  # type: ignore[arg-type]
        assert (own.exists(), other.exists()) == (False, True)
        maps[0][0] = 7
        assert maps[0][0] == 7
    finally:
        for path in (own, other):
            path.unlink(missing_ok=True)
