"""Everything that is logged is in the run's folder, with times; a refused command changes no file."""

import logging
import re
from pathlib import Path
from typing import Any

from flrl.cli.log_file import LogFile

RUN = ("strategy.rounds=2", "logger=none")


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("flrl", logging.INFO, __file__, 1, message, (), None)


def test_what_is_logged_before_the_beginning_is_kept(tmp_path: Path) -> None:
    handler = LogFile(str(tmp_path / "train.log"))
    for message in ("one", "two"):
        handler.handle(record(message))
    assert not (tmp_path / "train.log").exists()
    handler.begin()
    handler.handle(record("three"))
    handler.close()
    assert (tmp_path / "train.log").read_text() == "one\ntwo\nthree\n"


def test_a_run_and_its_resume_are_in_one_log(cli: Any) -> None:
    done = cli(*RUN, "hydra.run.dir=run", "optimized_metric=nothing")
    assert (done.code, done.err.count("\n")) == (0, 1)  # the terminal has warnings alone
    lines = Path("run/train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) [\w.]+: ", line) for line in lines)
    assert sum(": round " in line for line in lines) == 2
    assert sum(" WARNING " in line for line in lines) == 1
    assert cli("resume=run", "trainer.batch_size=7").code == 1
    assert Path("run/train.log").read_text().splitlines() == lines
    assert cli("resume=run", "strategy.rounds=3").code == 0
    assert Path("run/train.log").read_text().splitlines()[: len(lines)] == lines
    assert "from round 2 to round 3" in Path("run/train.log").read_text()


def test_each_job_of_a_sweep_has_its_own(cli: Any) -> None:
    assert cli("-m", *RUN, "seed=0,1", "hydra.sweep.dir=sweep").code == 0
    assert [Path(f"sweep/{job}/train.log").read_text().count(": round ") for job in (0, 1)] == [2, 2]
