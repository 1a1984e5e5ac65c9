"""`backend.portable`: libraries are held to AVX2 before torch is imported, in every process, and the bits are the same.

`pytest -m emulated -n 0 -s tests/test_portable.py` compares processors, in five to ten minutes.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flrl import portable
from flrl.backends import MpiBackend, ProcessBackend, SerialBackend
from flrl.backends.local import backend as process
from flrl.backends.pool.shared_memory import Segment
from flrl.backends.pool.watch import begin
from flrl.config import PORTABLE
from flrl.portable import of_run
from tests.backends.test_process import Toy

ROOT = Path(__file__).parents[1]
QEMU = shutil.which("qemu-x86_64")
PROCESSORS = ("Haswell", "EPYC-Rome")
TOO_LATE = (
    "backend.portable={}: this process has imported torch with backend.portable={}, and libraries look only once; "
    "start another process for it, in a sweep one for each value"
)
BACKENDS = pytest.mark.parametrize("backend", [SerialBackend, ProcessBackend, MpiBackend])


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, whose environment has none of the settings but the given ones."""
    own = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    command = [sys.executable, "-c", code]
    own |= {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=240)


def test_what_the_user_has_set_is_overridden_with_a_word() -> None:
    code = """
import json, os, sys
from flrl.backends.mpi.launch import prepare
prepare("flrl.backends.SerialBackend", portable=True)
prepare("flrl.backends.SerialBackend", portable=True)
found = {name: os.environ[name] for name in os.environ if name.endswith(("CAPABILITY", "_ISA", "CBWR"))}
print(json.dumps([found, "torch" in sys.modules]))
"""
    done = python(code)
    assert (json.loads(done.stdout), done.stderr) == ([PORTABLE, False], "")
    done = python(code, MKL_CBWR="AVX2", ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="AVX2")
    assert (json.loads(done.stdout), done.stderr) == (
        [PORTABLE, False],
        "backend.portable=true overrides ATEN_CPU_CAPABILITY=default, MKL_CBWR=AVX2\n",
    )


def test_without_it_the_users_settings_stay() -> None:
    code = "import os; from flrl.portable import choose; choose(False); print(os.environ.get('MKL_CBWR'))"
    assert (python(code).stdout, python(code, MKL_CBWR="AVX2").stdout) == ("None\n", "AVX2\n")


def test_a_waiting_rank_is_prepared_before_it_imports_torch() -> None:
    """Its world has one message for it; what it would import then is a stand-in that prints what it finds."""
    code = """
import os, sys, types
from flrl.backends.mpi import launch
from flrl.config import PORTABLE
from flrl.backends.mpi.world import Content, Prepare, World
class Comm:
    rank, size = 1, 2
    def iprobe(self, **options): return True
    def recv(self, **options): return Content(Prepare(True))
    def send(self, message, rank, tag): print("sent", message)
    def Abort(self, code): os._exit(code)
def follow(here, first):
    print("torch" in sys.modules, *(os.environ.get(name) for name in sorted(PORTABLE)))
sys.modules["flrl.backends.mpi.rank"] = types.SimpleNamespace(follow=follow)
launch._follow(World(Comm(), None, 0))
"""
    done = python(code, MKL_CBWR="AVX2")
    assert (done.stdout, done.stderr) == ("False avx2 COMPATIBLE AVX2\nsent None\n", "")


def test_a_worker_is_prepared_before_it_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    without: dict[str, str | None] = dict.fromkeys(PORTABLE) | {"MKL_CBWR": "AVX2"}
    for chosen, expected in ((True, PORTABLE), (False, without)):
        here, there = process._SPAWN.Pipe()
        arguments = (
            "tests.backends.environment_probe",
            "send_environment",
            pickle.dumps(list(PORTABLE)),
            there,
            chosen,
        )
        child = process._SPAWN.Process(target=begin, args=arguments)
        child.start()
        assert here.recv() == (expected, False)
        child.join()


def test_a_worker_where_it_does_not_hold_is_refused() -> None:
    here, there = process._SPAWN.Pipe()
    segment = Segment()
    segment.buffer(16)
    start = process._Start(0, 1, Toy(), None, 1, "cpu", True, None, segment.path)
    process._run(start, there)
    message, _ = here.recv()
    assert message.error == f"ValueError: {TOO_LATE.format('true', 'false')}"
    segment.close()


@BACKENDS
def test_too_late_is_refused(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PORTABLE.items():  # as a notebook might: torch reads them only once
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"^{TOO_LATE.format('true', 'false')}$"):
        backend(portable=True)
    monkeypatch.setattr(portable, "_chosen", True)
    assert backend(portable=True).portable
    with pytest.raises(ValueError, match=rf"^{TOO_LATE.format('false', 'true')}$"):
        backend()


def test_started_with_the_settings_it_holds_without_further_ado() -> None:
    code = """
import sys, types
from flrl import portable
sys.modules["torch"] = types.ModuleType("torch")
portable.check(True)
print(portable._chosen)
"""
    assert python(code, **PORTABLE).stdout == "False\n"
    assert TOO_LATE.format("true", "false") in python(code, **PORTABLE | {"MKL_CBWR": "AVX2"}).stderr


def test_the_command_line_reports_it_in_one_line(cli: Any) -> None:
    done = cli("backend.portable=true", "logger=none")
    assert (done.code, done.err) == (1, f"error: {TOO_LATE.format('true', 'false')}\n")


def test_what_it_cannot_hold_for_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(portable, "_chosen", True)
    monkeypatch.setattr(os, "environ", {**os.environ, **PORTABLE})
    with pytest.raises(
        ValueError, match=r"^backend\.portable=true: holds for processors, not for backend\.device=cuda$"
    ):
        portable.check(True, device="cuda")
    portable.check_trainer(False, Compiling())
    with pytest.raises(ValueError, match=r"^backend\.portable=true: trainer\.compile=true compiles for this processor"):
        portable.check_trainer(True, Compiling())
    monkeypatch.setattr(portable, "_flags", lambda: {"sse2", "avx", "fma"})
    with pytest.raises(ValueError, match=r"^backend\.portable=true: this processor has no avx2$"):
        SerialBackend(portable=True)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    with pytest.raises(ValueError, match=r"^backend\.portable=true: is for x86-64 processors, this is arm64$"):
        SerialBackend(portable=True)


class Compiling:
    """A trainer with torch.compile."""

    compile = True


@pytest.mark.parametrize(
    ("config", "expected"),
    [("backend: {portable: true}", True), ("backend: {portable: false}", False), ("seed: 0", False), ("", False)],
)
def test_a_runs_own_choice_is_found(config: str, expected: bool, tmp_path: Path) -> None:
    assert not of_run(tmp_path)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(config)
    assert of_run(tmp_path) is expected


def test_verify_and_evaluate_take_it_from_the_run(cli: Any) -> None:
    """In this process it is too late, so that both refuse a run that is portable: they have looked."""
    from flrl.evaluate import main as evaluate
    from flrl.verify import main as verify

    assert cli("logger=none", "strategy.rounds=1", "hydra.run.dir=run").code == 0
    assert cli("run=run", main=verify).code == 0
    config = Path("run/.hydra/config.yaml")
    config.write_text(config.read_text().replace("portable: false", "portable: true"))
    for main in (verify, evaluate):
        done = cli("run=run", main=main)
        assert (done.code, done.err) == (1, f"error: {TOO_LATE.format('true', 'false')}\n")


# The same bits on other processors.

SWEEP = (
    "-m", "model=softmax_regression,mlp_2nn,mcmahan_cnn", "strategy.rounds=2", "partition.num_clients=2",
    "holdout=0.9", "evaluation.every=2", "logger=none",
)  # fmt: skip


def trained(folder: Path, processor: str | None, *overrides: str) -> list[list[dict[str, Any]]]:
    """The rows of each job of the sweep, on a processor that is emulated, or on this one."""
    command = [sys.executable, "-m", "flrl.train", *SWEEP, *overrides, f"hydra.sweep.dir={folder}"]
    if processor is not None:
        command = [str(QEMU), "-cpu", processor, *command]
    environment = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=1500)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    jobs = [(folder / str(job) / "metrics.jsonl").read_text().splitlines() for job in range(3)]
    rows = [[json.loads(line) for line in job] for job in jobs]
    return [[{n: v for n, v in row.items() if not n.startswith("time/")} for row in job] for job in rows]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return trained(tmp_path_factory.mktemp("here"), None, "backend.portable=true")


@pytest.mark.emulated
@pytest.mark.timeout(1600)
@pytest.mark.skipif(QEMU is None, reason="there is no qemu-x86_64: apt-get install qemu-user")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_other_processors_give_the_same_bits(processor: str, here: list[list[dict[str, Any]]], tmp_path: Path) -> None:
    found = trained(tmp_path, processor, "backend.portable=true")
    for model, rows in zip(("softmax_regression", "mlp_2nn", "mcmahan_cnn"), found, strict=True):
        print(f"{processor} {model} {rows[-1]['digest']}")
    assert found == here
    assert len({rows[-1]["digest"] for rows in found}) == 3
