"""What goes wrong, and how a run ends then: soon, with one cause, nothing left behind, and ready to be resumed.

On each backend one run meets all misfortunes in turn: every start of it is `resume=auto`, so it is the resume of the
misfortune before. Each test works alone too; it compares all rows so far with those of an undisturbed serial run.
`pytest -m mpi` runs those on MPI, of which two are in the default suite, and `pytest -m slow` what differs from another
test by little.
"""

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.backends.launch import MPIEXEC, Launcher, Started
from tests.backends.subject import ROUNDS, RUN, WHAT_RAISES, Subject, causes, rows

SOON_S = 10.0
TIMEOUT_S = 3.0
MARKED_MPI = pytest.param("mpi", marks=pytest.mark.mpi)
BOTH = pytest.mark.parametrize("backend", ["process", MARKED_MPI])
BOTH_SLOW = pytest.mark.parametrize("backend", [pytest.param("process", marks=pytest.mark.slow), MARKED_MPI])

pytestmark = pytest.mark.timeout(240)


def send(run: Started, number: signal.Signals, to: str) -> None:
    """To all processes, as a terminal sends it; to the one that was started alone, maybe mpiexec; to rank 0 alone."""
    with contextlib.suppress(ProcessLookupError):
        if to == "all":
            os.killpg(run.process, number)
        else:
            os.kill(run.process if to == "main" else run.ranks()[0].pid, number)


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = launcher.run(*RUN, f"hydra.run.dir={folder / 'run'}", output=folder / "output.txt")
    assert run.code == 0, run.output
    found = rows(folder / "run")
    assert len(found) == ROUNDS
    return found


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {}


@pytest.fixture
def subject(
    backend: str,
    subjects: dict[str, Subject],
    launcher: Launcher,
    undisturbed: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Subject:
    if backend == "mpi" and not Path(MPIEXEC).exists():
        pytest.skip("there is no mpiexec: pip install 'flrl[dev]'")
    if backend not in subjects:
        subjects[backend] = Subject(launcher, tmp_path_factory.mktemp(backend) / "run", backend, undisturbed)
    return subjects[backend]


# Client 3 is trained by worker 1 of 2, and by rank 0 of 3; client 4 by rank 1.
WORKER, RANK = r"worker 1 \(process \d+\)", r"rank 1 \(process \d+ on \S+\)"
KILLED = r"was killed by SIGKILL \(is memory short\?\)"
SILENT = rf"has not answered for {TIMEOUT_S:g} s \(backend.timeout_s\)"
CLIENTS = {
    "raise": {
        ("process", 3): rf"client 3, round {{round}}, {WORKER}: {WHAT_RAISES}",
        ("mpi", 4): rf"client 4, round {{round}}, {RANK}: {WHAT_RAISES}",
        ("mpi", 3): rf"client 3, round {{round}}: {WHAT_RAISES}",
    },
    "kill": {
        (
            "process",
            3,
        ): rf"{WORKER} {KILLED} while training client 3, round {{round}}",
        ("mpi", 4): rf"{RANK} has ended while training client 4, round {{round}}",
        ("mpi", 3): r"rank 0 \(process \d+\) has ended while training client 3, round {round}",
    },
    "exit": {
        ("process", 3): rf"{WORKER} ended with exit code 7 while training client 3, round {{round}}",
        ("mpi", 4): rf"{RANK} has ended while training client 4, round {{round}}",
    },
    "stop": {
        ("process", 3): rf"{WORKER} {SILENT} while training client 3, round {{round}}",
        ("mpi", 4): rf"{RANK} {SILENT} while training client 4, round {{round}}",
        ("mpi", 3): rf"rank 0 \(process \d+\) {SILENT} while training client 3, round {{round}}",
    },
    "sleep": {
        ("process", 3): rf"{WORKER} {SILENT} while training client 3, round {{round}}",
        ("mpi", 4): rf"{RANK} {SILENT} while training client 4, round {{round}}",
        ("mpi", 3): rf"rank 0 \(process \d+ on \S+\) {SILENT} while training client 3, round {{round}}",
    },
}
PLACE = r" \(tests/faults\.py:\d+, in _fail\); HYDRA_FULL_ERROR=1 shows the whole traceback"
IN_DEFAULT_SUITE = {("kill", "mpi", 4)}
ALIKE = {(fault, "process", 3) for fault in ("exit", "kill", "sleep", "stop")}
FAULTS = [
    pytest.param(
        fault,
        backend,
        client,
        cause,
        id=f"{fault}-{backend}-client {client}",
        marks=[pytest.mark.mpi] * (backend == "mpi" and (fault, backend, client) not in IN_DEFAULT_SUITE)
        + [pytest.mark.slow] * ((fault, backend, client) in ALIKE),
    )
    for fault, cases in CLIENTS.items()
    for (backend, client), cause in cases.items()
]


@pytest.mark.parametrize(("fault", "backend", "client", "cause"), FAULTS)
def test_a_worker_fails_in_a_clients_training(subject: Subject, fault: str, client: int, cause: str) -> None:
    round, limit = subject.saved + 2, SOON_S
    overrides = [f"trainer.fault={fault}", f"trainer.client_id={client}", f"trainer.round={round}"]
    if fault in ("stop", "sleep"):
        overrides.append(f"backend.timeout_s={TIMEOUT_S:g}")
        limit += TIMEOUT_S
    with subject.start(*overrides) as run:
        over = run.wait()
    seconds = over - subject.mark.stat().st_mtime
    print(f"{fault}, {subject.backend}: {seconds:.1f} s, exit code {run.code}, {causes(run.output)}")
    assert 0 < seconds < limit
    assert run.code != 0
    assert (run.code == 1) or subject.backend == "mpi"
    expected = f"error: {cause.format(round=round)}" + (PLACE if fault == "raise" else "")
    assert [bool(re.fullmatch(expected, line)) for line in causes(run.output)] == [True]
    if fault == "raise":
        assert run.code == 1
        assert "MPI_ABORT" not in run.output  # the other ranks were let go in order
        assert "Traceback" not in run.output
    subject.check(saved=round - 1)


@BOTH
def test_the_controller_is_killed(subject: Subject) -> None:
    with subject.start("trainer.fault=slow") as run:
        subject.reaches(run, subject.saved + 2)
        assert len(run.processes()) >= 3
        killed = time.time()
        send(run, signal.SIGKILL, "rank 0" if subject.backend == "mpi" else "main")
        seconds = run.wait() - killed
    print(f"controller killed, {subject.backend}: {seconds:.1f} s, exit code {run.code}, {causes(run.output)}")
    assert seconds < SOON_S
    if subject.backend == "process":
        assert run.code == -signal.SIGKILL
    else:
        assert run.code not in (0, None)
        assert re.fullmatch(r"error: rank 0 \(process \d+\) has ended( while .*)?", "\n".join(causes(run.output)))
    subject.check()


@pytest.mark.parametrize(
    ("backend", "number", "to"),
    [
        pytest.param("process", signal.SIGTERM, "all", marks=pytest.mark.slow),
        pytest.param("process", signal.SIGTERM, "main", marks=pytest.mark.slow),
        pytest.param("process", signal.SIGINT, "all", marks=pytest.mark.slow),
        pytest.param("mpi", signal.SIGTERM, "rank 0", marks=pytest.mark.mpi),
        pytest.param("mpi", signal.SIGINT, "rank 0", marks=pytest.mark.mpi),
    ],
)
def test_a_signal_ends_it_through_a_checkpoint(subject: Subject, number: signal.Signals, to: str) -> None:
    before = subject.saved
    with subject.start("trainer.fault=slow", "callbacks.checkpoint.every=100") as run:
        subject.reaches(run, before + 2)
        sent = time.time()
        send(run, number, to)
        seconds = run.wait() - sent
    print(f"{number.name} to {to}, {subject.backend}: {seconds:.1f} s, exit code {run.code}")
    assert seconds < SOON_S
    assert run.code == 128 + number
    assert causes(run.output) == []
    assert "MPI_ABORT" not in run.output
    assert subject.rounds >= before + 2
    assert f"stopped after round {subject.rounds} of {ROUNDS}" in run.output
    subject.check(saved=subject.rounds)


@BOTH_SLOW
def test_a_worker_is_asked_to_end(subject: Subject) -> None:
    before = subject.saved
    with subject.start("trainer.fault=slow", "callbacks.checkpoint.every=100") as run:
        subject.reaches(run, before + 2)
        sent = time.time()
        os.kill(run.workers()[1], signal.SIGTERM)
        seconds = run.wait() - sent
    print(f"SIGTERM to a worker, {subject.backend}: {seconds:.1f} s, exit code {run.code}, {causes(run.output)}")
    assert seconds < SOON_S
    assert run.code == 1
    assert "MPI_ABORT" not in run.output
    who = WORKER if subject.backend == "process" else RANK.replace("1", "2", 1)
    doing = rf"( while training client \d)?, round {subject.rounds + 1}"
    assert [bool(re.fullmatch(f"error: {who} was ended by SIGTERM{doing}", line)) for line in causes(run.output)] == [
        True
    ]
    assert subject.rounds >= before + 2
    subject.check(saved=subject.rounds)


@pytest.mark.mpi
@pytest.mark.parametrize("backend", ["mpi"])
def test_mpiexec_is_killed_and_leaves_no_shared_memory(subject: Subject) -> None:
    with subject.start("trainer.fault=slow") as run:
        subject.reaches(run, subject.saved + 2)
        segments = run.segments()
        assert len(segments) == 3
        for process in [run.process, *(rank.pid for rank in run.ranks())]:
            os.kill(process, signal.SIGKILL)
        run.wait()
    assert [path for path in segments if Path(path).exists()] == []
    subject.check()


@pytest.mark.mpi
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("backend", ["mpi"])
def test_a_signal_to_mpiexec(subject: Subject, number: signal.Signals) -> None:
    """Open MPI's waits for 0.25 s, sends SIGTERM, 0.25 s later SIGKILL, and ends with 1 whatever rank 0 returns."""
    before = subject.saved
    with subject.start("trainer.fault=slow", "callbacks.checkpoint.every=100") as run:
        subject.reaches(run, before + 2)
        sent = time.time()
        send(run, number, "main")
        seconds = run.until(lambda: not run.ranks(), "the end of all ranks") - sent
        if number == signal.SIGINT and not run.ended:  # now and then it waits for ranks that have ended, or another one
            time.sleep(1)
            send(run, number, "main")
        run.wait()
    print(f"{number.name} to mpiexec: {seconds:.1f} s, exit code {run.code}")
    assert seconds < SOON_S
    assert run.code == 1
    assert subject.rounds >= before + 2
    subject.check(saved=subject.rounds)


@pytest.mark.slow
@BOTH
def test_ctrl_c_twice(subject: Subject) -> None:
    before, to = subject.saved, "all" if subject.backend == "process" else "main"
    with subject.start("trainer.fault=slow") as run:
        subject.reaches(run, before + 2)
        send(run, signal.SIGINT, to)
        time.sleep(0.3)
        sent = time.time()
        send(run, signal.SIGINT, to)
        seconds = run.wait() - sent
    print(f"SIGINT twice, {subject.backend}: {seconds:.1f} s, exit code {run.code}")
    assert seconds < SOON_S
    assert run.code not in (0, None)
    subject.check()


@BOTH_SLOW
def test_the_disk_is_full_while_a_checkpoint_is_written(subject: Subject) -> None:
    round = subject.saved + 2
    disk = ("callbacks=full_disk", f"callbacks.full_disk.round={round}", f"callbacks.full_disk.mark={subject.mark}")
    with subject.start(*disk) as run:
        over = run.wait()
    seconds = over - subject.mark.stat().st_mtime
    print(f"full disk, {subject.backend}: {seconds:.1f} s, exit code {run.code}, {causes(run.output)}")
    assert 0 < seconds < SOON_S
    assert run.code == 1
    partial = re.escape(str(subject.folder / "checkpoints" / f".round-{round:05d}.partial" / "state.safetensors"))
    expected = rf"error: OSError: \[Errno 28\] .*{partial}.*"
    assert [bool(re.fullmatch(expected, line)) for line in causes(run.output)] == [True]
    subject.check(saved=round - 1)
    assert sorted(path.name for path in (subject.folder / "checkpoints").iterdir()) == [
        f"round-{r:05d}" for r in (round - 2, round - 1) if r
    ]


@BOTH_SLOW
def test_after_all_that_it_ends_undisturbed(subject: Subject) -> None:
    with subject.start("callbacks=default") as run:  # a resume goes on with the callbacks of the run before
        run.wait()
    assert run.code == 0, run.output
    subject.check(saved=ROUNDS)
    assert subject.rounds == ROUNDS
    summary = json.loads((subject.folder / "summary.json").read_text())
    assert summary["digest"] == subject.expected[-1]["digest"]
    assert not (subject.folder / "error.txt").exists()
