"""The environment that is recorded beside the configuration, and the notes on its differences."""

import copy
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.runs import environment as module
from flrl.runs.environment import PORTABLE, differences, environment, files, repository, sources
from flrl.verify import main as verify

RUN = ("strategy.rounds=2", "partition.num_clients=2", "logger=none", "hydra.run.dir=run")
NET = """
from tests.toys import Late


class Net(Late):
    factor = 1.0
"""


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def own(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cli` for a model of one's own in `lab_net.py`, of which each call imports what there is then."""
    (tmp_path / "lab_net.py").write_text(NET)
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    (tmp_path / "my_conf" / "model" / "lab.yaml").write_text("_target_: lab_net.Net")
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str, **options: Any) -> Any:
        sys.modules.pop("lab_net", None)
        return cli(*arguments, **options)

    yield run
    sys.modules.pop("lab_net", None)


def test_a_run_records_code_libraries_processor_and_choices_from_its_start_on(own: Any, tmp_path: Path) -> None:
    git("init", "-q", ".")
    git("add", "lab_net.py")
    git("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "net")
    assert own("--config-dir=my_conf", "model=lab", "strategy=fedprox", "strategy.mu=0.5", *RUN).code == 0
    summary = json.loads(Path("run/summary.json").read_text())
    (row,) = [json.loads(line) for line in Path("run/environments.jsonl").read_text().splitlines()]
    assert row["after_round"] == 0
    assert {name: summary[name] for name in row if name != "after_round"} == {
        name: value for name, value in row.items() if name != "after_round"
    }
    assert summary["sources"]["lab_net.py"] == hashlib.sha256(NET.encode()).hexdigest()
    assert summary["git"] == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    assert summary["choices"]["strategy"] == "fedprox"
    assert summary["choices"]["model"] == "lab"
    assert summary["choices"]["strategy/sampler"] == "uniform"
    assert summary["overrides"] == ["model=lab", "strategy=fedprox", "strategy.mu=0.5", *RUN[:-1]]
    assert summary["processor"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert summary["libraries"]["threads"] == 1
    assert {*PORTABLE} <= {*summary["libraries"]}
    assert summary["versions"]["python"] == platform.python_version()
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_run_that_is_killed_has_recorded_it_too(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flrl.rounds.Rounds._round", _interrupt)
    assert own("--config-dir=my_conf", "model=lab", *RUN).code == 130
    row = json.loads(Path("run/environments.jsonl").read_text())
    assert "lab_net.py" in row["sources"]
    assert row["choices"]["model"] == "lab"


def _interrupt(*args: Any) -> Any:
    raise KeyboardInterrupt


def test_other_code_is_named_by_verify_and_by_a_resume(own: Any) -> None:
    assert own("--config-dir=my_conf", "model=lab", *RUN).code == 0
    assert own("run=run", main=verify).out.count("\n") == 1
    Path("lab_net.py").write_text(NET.replace("1.0", "2.0"))
    was, now = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (NET, NET.replace("1.0", "2.0")))
    note = f"lab_net.py is not what the run imported (SHA-256 {was}..., now {now}...)"
    done = own("run=run", main=verify)
    assert done.code == 0
    assert done.out.splitlines()[0] == f"note      {note}"
    done = own("resume=run", "strategy.rounds=3")
    assert (done.code, done.err) == (0, f"warning: {note}\n")
    rows = [json.loads(line) for line in Path("run/environments.jsonl").read_text().splitlines()]
    assert [(row["after_round"], row["sources"]["lab_net.py"][:12]) for row in rows] == [(0, was), (2, now)]
    assert own("run=run", "rounds=3", main=verify).out.count("\n") == 1
    assert note in own("run=run", "rounds=1..2", main=verify).out


def test_a_file_that_has_changed_is_named_by_verify_and_by_a_resume(cli: Any) -> None:
    lines = [f'{{"round": {r}, "clients": [{r % 2}]}}\n' for r in (1, 2, 3)]
    Path("trace.jsonl").write_text("".join(lines))
    assert cli("strategy/sampler=trace", "strategy.sampler.file=trace.jsonl", *RUN).code == 0
    (row,) = [json.loads(line) for line in Path("run/environments.jsonl").read_text().splitlines()]
    was = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert row["files"] == {"strategy.sampler.file": {"path": "trace.jsonl", "sha256": was}}
    assert json.loads(Path("run/summary.json").read_text())["files"] == row["files"]
    assert cli("run=run", main=verify).out.count("\n") == 1
    Path("trace.jsonl").write_text("".join(lines).replace("[1]}\n{", "[0, 1]}\n{"))
    now = hashlib.sha256(Path("trace.jsonl").read_bytes()).hexdigest()
    note = f"strategy.sampler.file=trace.jsonl is not what the run read (SHA-256 {was[:12]}..., now {now[:12]}...)"
    done = cli("run=run", main=verify)
    assert (done.code, done.out.splitlines()[0]) == (1, f"note      {note}")
    done = cli("resume=run", "strategy.rounds=3")
    assert (done.code, done.err) == (0, f"warning: {note}\n")
    rows = [json.loads(line) for line in Path("run/environments.jsonl").read_text().splitlines()]
    assert [row["files"]["strategy.sampler.file"]["sha256"] for row in rows] == [was, now]


def test_files_are_those_that_settings_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    a = str(tmp_path / "a")
    config = {
        "devices": {"path": a, "availability": {"path": str(tmp_path / "none"), "other": a}},
        "strategy": {"sampler": {"file": None}, "own": [{"file": a}]},
        "dataset": {"path": str(tmp_path)},
        "paths": {"path": a},
    }
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc, FIPS 180-2
    there = {"path": a, "sha256": sha256}
    assert files(config) == {"strategy.own.0.file": there, "devices.path": there}


def test_a_folder_without_git_or_without_a_commit_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert repository(tmp_path) is None
    monkeypatch.chdir(tmp_path)
    git("init", "-q", ".")
    assert repository(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "a")
    (tmp_path / "b").write_text("untracked")
    commit = git("rev-parse", "HEAD")
    assert repository(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert repository(tmp_path) == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "/nowhere")
    assert repository(tmp_path) is None


def test_sources_are_ones_own_files_alone() -> None:
    names = sources()
    assert names["tests/runs/test_environment.py"] == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert not [name for name in names if "site-packages" in name or name.startswith(("flrl/", "torch/", "/usr/lib"))]
    assert not {"os.py", "json/__init__.py"} & {*names}


NOW: dict[str, Any] = {
    "versions": {"flrl": "0.1.0", "torch": "2.15.0", "numpy": "2.4", "python": "3.11.7"},
    "sources": {"net.py": "a" * 64},
    "files": {"devices.path": {"path": "d.json", "sha256": "a" * 64}},
    "processor": {
        "capability": "AVX2", "model": "AMD EPYC", "vendor": "AuthenticAMD", "level": "x86-64-v3",
        "flags": ["avx2", "fma"],
    },
    "libraries": {"threads": 1, **dict.fromkeys(PORTABLE)},
}  # fmt: skip


def recorded(**changes: Any) -> dict[str, Any]:
    record = copy.deepcopy(NOW)
    for name, values in changes.items():
        record[name].update(values)
    return record


KIND = "this is AMD EPYC (x86-64-v3, torch uses AVX2): expect other bits; backend.portable=true avoids it"
LARGER = {"flags": ["avx2", "avx512f", "fma"], "level": "x86-64-v4", "capability": "AVX512"}
DIFFERENCES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"processor": {"model": "AMD EPYC 2"}, "libraries": {"threads": 2}, "versions": {"python": "3.12"}}, []),
    ({"sources": {"net.py": "b" * 64}}, [
        "net.py is not what the run imported (SHA-256 bbbbbbbbbbbb..., now aaaaaaaaaaaa...)",
    ]),
    ({"sources": {"gone.py": "b" * 64}}, ["gone.py, which the run imported, is not found here"]),
    ({"files": {"devices.path": {"path": "old.json", "sha256": "b" * 64}}}, [
        "devices.path=d.json is not what the run read (SHA-256 bbbbbbbbbbbb..., now aaaaaaaaaaaa...)",
    ]),
    ({"files": {"devices.path": {"path": "old.json", "sha256": "a" * 64}}}, []),
    ({"files": {"dataset.file": {"path": "gone.txt", "sha256": "b" * 64}}}, [
        "dataset.file=gone.txt, which the run read, is not found here",
    ]),
    ({"versions": {"torch": "2.14.0"}}, ["the run had torch 2.14.0, this is 2.15.0: expect other bits"]),
    ({"processor": LARGER}, [
        f"another kind of processor: the run had AMD EPYC (x86-64-v4, torch uses AVX512), {KIND}",
    ]),
    ({"processor": {"capability": "DEFAULT"}}, [
        f"another kind of processor: the run had AMD EPYC (x86-64-v3, torch uses DEFAULT), {KIND}",
    ]),
    ({"processor": {"vendor": "GenuineIntel", "model": "Xeon"}}, [
        f"another kind of processor: the run had Xeon (x86-64-v3, torch uses AVX2), {KIND}",
    ]),
    ({"processor": LARGER, "libraries": PORTABLE}, [
        "the run had backend.portable=true, this is false: expect other bits",
    ]),
    ({"libraries": {"MKL_CBWR": "AVX2"}}, ["the run had MKL_CBWR=AVX2, this is unset: expect other bits"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "note"), DIFFERENCES, ids=[str([*changes]) for changes, _ in DIFFERENCES])
def test_differences_that_bits_may_depend_on_are_noted(changes: dict[str, Any], note: list[str]) -> None:
    assert differences(recorded(**changes), NOW) == note


def test_two_portable_runs_may_be_on_any_processor() -> None:
    assert differences(recorded(processor=LARGER, libraries=PORTABLE), recorded(libraries=PORTABLE)) == []
    assert len(differences(recorded(libraries=PORTABLE), NOW)) == 1
    assert len(differences(NOW, recorded(libraries=PORTABLE))) == 1


def test_a_run_without_a_recorded_environment_has_no_differences() -> None:
    assert differences({"after_round": 0}, environment()) == []
    assert differences(environment(), environment()) == []


@pytest.mark.parametrize("command", ["verify", "resume"])
def test_another_processor_is_noted(cli: Any, command: str) -> None:
    assert cli(*RUN).code == 0
    path = Path("run/environments.jsonl")
    row = json.loads(path.read_text())
    row["processor"] |= LARGER
    path.write_text(json.dumps(row) + "\n")
    if command == "verify":
        note = cli("run=run", main=verify).out.splitlines()[0].removeprefix("note      ")
    else:
        done = cli("resume=run", "strategy.rounds=3")
        assert done.code == 0
        (note,) = done.err.removeprefix("warning: ").splitlines()
    assert note.startswith("another kind of processor: the run had ")
    assert "(x86-64-v4, torch uses AVX512), this is " in note
    assert note.endswith(": expect other bits; backend.portable=true avoids it")


def test_the_processor_is_read_where_linux_does_not_describe_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_described_by_linux", lambda: {})
    found = module.processor()
    assert found["vendor"] is None
    assert found["model"]
    described = {"flags": "fpu pni avx avx2 fma sse4_2 ssse3 popcnt bmi1 bmi2 f16c avx512f"}
    monkeypatch.setattr(module, "_described_by_linux", lambda: described)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    found = module.processor()
    assert found["flags"] == [
        "avx",
        "avx2",
        "avx512f",
        "bmi",
        "bmi2",
        "f16c",
        "fma",
        "popcnt",
        "sse3",
        "sse42",
        "ssse3",
    ]
    assert found["level"] == ("x86-64-v3" if platform.machine() == "x86_64" else platform.machine())


def test_nothing_is_asked_of_a_repository_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(module, "_GIT_S", 0.2)
    assert repository(tmp_path) is None
