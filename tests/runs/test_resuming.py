"""A run with damaged files goes on from its last good state, to the digest of an undisturbed one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RUN = ("strategy=fedavgm", "strategy.rounds=5", "strategy.sampler.num=3", "logger=none", "log_clients=true")
NEWEST = Path("run/checkpoints/round-00005")
TABLES = ("metrics.jsonl", "clients.jsonl", "digests.jsonl")


def rows(folder: str, name: str) -> list[dict[str, Any]]:
    """The rows of a table without what differs from run to run: times, and bytes read and written."""
    lines = Path(folder, name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def files(folder: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def torn(name: str, *, newline: bool) -> Callable[[], None]:
    """Cut the last row of a table short."""

    def tear() -> None:
        path = Path("run", name)
        *whole, last = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(whole) + last[: len(last) // 2] + b"\n" * newline)

    return tear


def between(name: str, line: bytes) -> Callable[[], None]:
    """Put a line into the middle of a table."""

    def put() -> None:
        path = Path("run", name)
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))

    return put


def cut() -> None:
    path = NEWEST / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


ROW = "run/metrics.jsonl should hold rounds 1 to 5, it holds [1, 2, 3, 4]"
KEPT = "kept as round-00005.damaged"
SHA = "state.safetensors does not have the SHA-256 that state.json gives"
NO_JSON = "[Errno 2] No such file or directory: 'run/checkpoints/round-00005/state.json'"
# What is damaged; after which round the run is resumed; the warnings, a line each.
DAMAGES: dict[str, tuple[Callable[[], Any], int, list[str]]] = {
    "a cut row": (
        torn("metrics.jsonl", newline=False), 4,
        [f"{NEWEST} is left out: {ROW}; {KEPT}",
         "run/metrics.jsonl is taken without its damaged lines: 5; kept as metrics.jsonl.damaged"],
    ),
    "a cut row and a newline": (
        torn("metrics.jsonl", newline=True), 4,
        [f"{NEWEST} is left out: {ROW}; {KEPT}",
         "run/metrics.jsonl is taken without its damaged lines: 5; kept as metrics.jsonl.damaged"],
    ),
    "a torn line between": (
        between("metrics.jsonl", b'{"round": 3, "te'), 5,
        ["run/metrics.jsonl is taken without its damaged lines: 3; kept as metrics.jsonl.damaged"],
    ),
    "bytes between": (
        between("metrics.jsonl", b"\x00\xff\x00"), 5,
        ["run/metrics.jsonl is taken without its damaged lines: 3; kept as metrics.jsonl.damaged"],
    ),
    "a cut row of a client": (
        torn("clients.jsonl", newline=True), 4,
        [f"{NEWEST} is left out: run/clients.jsonl lacks rows of round 5; {KEPT}",
         "run/clients.jsonl is taken without its damaged lines: 15; kept as clients.jsonl.damaged"],
    ),
    "a cut row of digests": (
        torn("digests.jsonl", newline=False), 4,
        [f"{NEWEST} is left out: run/digests.jsonl lacks rows of round 5; {KEPT}",
         "run/digests.jsonl is taken without its damaged lines: 5; kept as digests.jsonl.damaged"],
    ),
    "a torn checkpoint": (cut, 4, [f"{NEWEST} is left out: not a valid checkpoint: {SHA}; {KEPT}"]),
    "a checkpoint of garbage": (
        lambda: (NEWEST / "state.safetensors").write_bytes(b"garbage"), 4,
        [f"{NEWEST} is left out: not a valid checkpoint: {SHA}; {KEPT}"],
    ),
    "no description": (
        (NEWEST / "state.json").unlink, 4, [f"{NEWEST} is left out: not a valid checkpoint: {NO_JSON}; {KEPT}"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the undisturbed run is, once there is one."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def run(cli: Any, whole: Path) -> Any:
    """`cli`, beside an undisturbed run in `whole` and a copy of it in `run`."""
    if not whole.exists():
        assert cli(*RUN, f"hydra.run.dir={whole}").code == 0
    for folder in ("whole", "run"):
        shutil.copytree(whole, folder)
    return cli


@pytest.mark.parametrize(("damage", "round", "warnings"), DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("way", ["resume=run", "resume=auto"])
def test_a_damaged_run_goes_on_from_its_last_good_state(
    run: Any, damage: Callable[[], Any], round: int, warnings: list[str], way: str
) -> None:
    damage()
    before = files("run")
    done = run(*(() if way == "resume=run" else RUN), way, "hydra.run.dir=run")
    assert done.code == 0, done.err
    folder = "run" if way == "resume=run" else str(Path("run").resolve())
    assert done.err.splitlines() == ["warning: " + line.replace("run/", f"{folder}/") for line in warnings]
    assert f"resumed after round {round}\n" in done.out
    for name in TABLES:
        assert rows("run", name) == rows("whole", name)
    digests = [json.loads(Path(folder, "summary.json").read_text())["digest"] for folder in ("run", "whole")]
    assert digests[0] == digests[1]
    for line in warnings:
        aside = line.rpartition("kept as ")[2]
        path = next(path for path in Path("run").rglob(aside))
        for kept in [path] if path.is_file() else path.iterdir():
            assert kept.read_bytes() == before[Path(str(kept).replace(".damaged", ""))]


def test_another_folder_takes_only_what_is_good(run: Any) -> None:
    torn("metrics.jsonl", newline=False)()
    before = files("run")
    done = run("resume=run", "hydra.run.dir=other")
    assert done.code == 0
    assert done.err.splitlines() == [
        f"warning: {NEWEST} is left out: {ROW}",
        "warning: run/metrics.jsonl is taken without its damaged lines: 5",
    ]
    assert files("run") == before
    assert [rows("other", name) for name in TABLES] == [rows("whole", name) for name in TABLES]


def test_a_second_damage_is_kept_beside_the_first(run: Any) -> None:
    for _ in range(2):
        cut()
        assert run("resume=run").code == 0
    kept = sorted(path.name for path in Path("run/checkpoints").iterdir())
    assert kept == ["round-00004", "round-00005", "round-00005.damaged", "round-00005.damaged2"]


def test_rows_that_no_checkpoint_can_bring_back_are_named_and_left_out(run: Any) -> None:
    path = Path("run/clients.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], lines[4][:20] + "\n", *lines[5:]]))
    done = run("resume=run", "strategy.rounds=6")
    assert done.err == (
        "warning: run/clients.jsonl is taken without its damaged lines: 5; kept as clients.jsonl.damaged\n"
    )
    assert "resumed after round 5\n" in done.out
    left = rows("whole", "clients.jsonl")
    assert rows("run", "clients.jsonl")[:14] == left[:4] + left[5:]


def test_a_folder_without_a_good_checkpoint_is_refused(run: Any) -> None:
    cut()
    (NEWEST.with_name("round-00004") / "state.json").write_text("{")
    before = files("run")
    for arguments in (("resume=run",), (*RUN, "resume=auto", "hydra.run.dir=run"), ("resume=run", "hydra.run.dir=new")):
        done = run(*arguments)
        assert done.code == 1
        assert done.err == (
            f"error: run has no checkpoint to go on from (round-00005 is left out: not a valid checkpoint: {SHA}; "
            "round-00004 is left out: not a valid checkpoint: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)); nothing was changed\n"
        ).replace("run has", f"{Path('run').resolve() if 'resume=auto' in arguments else 'run'} has")
        assert files("run") == before


def test_a_lost_row_before_all_checkpoints_is_refused(run: Any) -> None:
    path = Path("run/metrics.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:20] + "\n", *lines[3:]]))
    done = run("resume=run")
    assert done.code == 1
    assert "round-00004 is left out: run/metrics.jsonl should hold rounds 1 to 4, it holds [1, 2, 4])" in done.err
    assert not list(Path("run").rglob("*.damaged"))


def test_a_newer_format_is_no_damage(run: Any) -> None:
    path = NEWEST / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert "its format is 99, this version reads 1 and 2; nothing was changed" in run("resume=run").err


def test_a_changed_bit_of_what_clients_remember_costs_a_round(cli: Any) -> None:
    run = ("strategy/transforms=top_k", "strategy.rounds=4", "strategy.sampler.num=4", "logger=none")
    assert cli(*run, "hydra.run.dir=whole").code == 0
    assert cli(*run, "strategy.rounds=3", "hydra.run.dir=run").code == 0
    before = set(Path("run/clients").iterdir())
    assert cli("resume=run", "strategy.rounds=4", "logger=none").code == 0
    newest = max(set(Path("run/clients").iterdir()) - before)
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes(data)
    shutil.rmtree("again", ignore_errors=True)
    done = cli("resume=run", "hydra.run.dir=run", "logger=none", "strategy.rounds=5")
    assert done.code == 0, done.err
    assert "resumed after round 3" in done.out
    assert f"{newest.name} is damaged: the memory of client" in done.err
    assert rows("run", "metrics.jsonl")[:4] == rows("whole", "metrics.jsonl")
