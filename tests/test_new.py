"""A new study is whole, runs at once with the command that is printed, and its test passes."""

import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flrl.new import main, new

CANNOT_BE = "cannot be the name of a module: letters, digits and _, no digit first"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A study in a temporary folder, its module importable."""
    folder = tmp_path / "drifting"
    new(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("drifting", None)


def test_it_runs_with_the_command_that_is_printed(
    cli: Callable[..., Any], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = cli(main=lambda: main([str(study.parent / "other")])).out
    command = next(line for line in printed.splitlines() if "flrl.train" in line)
    python, *arguments = command.replace("other", "drifting").split()
    assert (python, arguments[:2]) == ("python", ["-m", "flrl.train"])
    assert command.strip() in (study.parent / "other" / "README.md").read_text()
    monkeypatch.chdir(study)
    done = cli(*arguments[2:], "strategy.rounds=2", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "round 2/2" in done.out
    assert "drifting.Decay" in Path("run/.hydra/config.yaml").read_text()


def test_its_tests_pass(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = runpy.run_path(str(study / "test_drifting.py"))
    tests["test_decay_adds_the_weights_to_the_gradient"]()
    tests["test_a_negative_strength_is_refused"]()
    tests["test_the_experiment_learns"](tmp_path / "run", monkeypatch)
    assert len([name for name in tests if name.startswith("test_")]) == 3


@pytest.mark.slow
def test_its_tests_pass_under_pytest(study: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"], cwd=study, capture_output=True, text=True, timeout=300
    )
    assert "3 passed" in done.stdout, done.stdout


def test_no_name_of_the_template_stays(study: Path) -> None:
    files = [path for path in study.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = sorted(path.relative_to(study).as_posix() for path in files)
    assert names == [
        "README.md",
        "conf/experiment/drifting.yaml",
        "conf/model/drifting.yaml",
        "conf/strategy/drifting.yaml",
        "drifting.py",
        "test_drifting.py",
    ]
    assert not any("my_study" in path.read_text() for path in files)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-study", f"'my-study' {CANNOT_BE}; did you mean my_study?"),
        ("ünï", f"'ünï' {CANNOT_BE}; did you mean uni?"),
        ("2nd", f"'2nd' {CANNOT_BE}"),
        ("class", f"'class' {CANNOT_BE}"),
        ("torch", "'torch' is the name of an installed module already: did you mean torch_study?"),
        ("there", "there is there already: choose another name, or remove it"),
        ("file/mine", "[Errno 20] Not a directory: 'file/mine'"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        main([name])
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
