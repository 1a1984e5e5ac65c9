"""The wheel carries conf/, and works from another directory."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_installs_and_runs_elsewhere(tmp_path: Path) -> None:
    quiet = {"capture_output": True, "text": True, "timeout": 300}
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, **quiet)
    wheel = tmp_path / made.stdout.splitlines()[-1]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"flrl/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")} <= names
    assert {"flrl/reporting/page.css", "flrl/reporting/page.js"} <= names
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "flrl" / "new_study").rglob("*.txt")} <= names
    assert not any(name.startswith(("tests/", "conf/", "benchmarks/")) for name in names)
    # An environment of its own over the present one's packages, without the editable install of this checkout.
    venv.create(tmp_path / "env", with_pip=False)
    env_python = tmp_path / "env" / "bin" / "python"
    site = Path(
        subprocess.check_output([env_python, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", env_python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, **quiet)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    train = tmp_path / "env" / "bin" / "flrl-train"
    shown = subprocess.run([train, "--help"], cwd=elsewhere, env=environment, check=True, **quiet)
    assert "experiment" in shown.stdout
    run = [train, "strategy.rounds=1", "hydra.run.dir=run"]
    done = subprocess.run(run, cwd=elsewhere, env=environment, **quiet)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "run" / "model.safetensors").exists()
    where = "import flrl; print(flrl.__file__)"
    used = subprocess.check_output([env_python, "-c", where], cwd=elsewhere, env=environment, text=True)
    assert used.startswith(str(site))
    evaluate = [tmp_path / "env" / "bin" / "flrl-evaluate", "run=run"]
    assert "test/accuracy" in subprocess.run(evaluate, cwd=elsewhere, env=environment, check=True, **quiet).stdout
