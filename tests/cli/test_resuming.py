"""A run is gone on with as it was saved, and what is given now wins key by key."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

RUN = ("strategy.rounds=1", "logger=none", "partition.num_clients=3")


def saved(folder: str = "run") -> dict[str, Any]:
    return yaml.safe_load(Path(folder, ".hydra/config.yaml").read_text())


@pytest.mark.slow
def test_values_and_choices_of_today_win_and_all_else_is_as_it_was(cli: Any) -> None:
    started = (*RUN, "trainer.batch_size=8", "backend=mpi", "backend.threads=1", "+model.optimizer.nesterov=false")
    assert cli(*started, "hydra.run.dir=run").code == 0
    was = saved()
    done = cli(
        "resume=run", "strategy.rounds=2", "backend=process", "trainer=eager", "+tags=[a]", "~callbacks.nan_guard"
    )
    assert (done.code, done.err) == (0, "")
    assert sys.argv[1:] == ["resume=run", "strategy.rounds=2", "backend=process", "trainer=eager", "++tags=[a]",
                            "~callbacks.nan_guard"]  # fmt: skip
    now = saved()
    assert now["backend"]["_target_"] == "flrl.backends.ProcessBackend"
    assert (now["trainer"]["_target_"], now["trainer"]["batch_size"]) == ("flrl.trainers.EagerTrainer", 8)
    assert (now["tags"], [*now["callbacks"]]) == (["a"], ["progress", "checkpoint", "report"])
    for name in ("model", "dataset", "partition", "evaluation", "seed"):
        assert now[name] == was[name]
    rows = [json.loads(line) for line in Path("run/environments.jsonl").read_text().splitlines()]
    assert rows[-1]["choices"]["model"] == "softmax_regression"


def test_a_default_that_has_changed_since_does_not_matter(cli: Any) -> None:
    assert cli(*RUN, "hydra.run.dir=run").code == 0
    changed = saved()
    changed["strategy"]["min_clients"], changed["evaluation"]["every"] = 2, 3  # as if these had been the defaults
    Path("run/.hydra/config.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    Path("run/.hydra/overrides.yaml").unlink()
    for way in (("resume=run", "strategy.rounds=2"), ("resume=auto", "hydra.run.dir=run", "strategy.rounds=3")):
        assert cli(*way).code == 0
        assert (saved()["strategy"]["min_clients"], saved()["evaluation"]["every"]) == (2, 3)


def test_a_job_script_with_additions_and_deletions_is_rerun(cli: Any) -> None:
    script = (*RUN, "+model.optimizer.nesterov=false", "~callbacks.progress", "~model.optimizer.momentum",
              "name=again", "hydra.run.dir='runs/${name}'", "resume=auto")  # fmt: skip
    for rounds in (1, 2):
        done = cli(*script, f"strategy.rounds={rounds}")
        assert (done.code, done.err) == (0, "")
    assert len(Path("runs/again/metrics.jsonl").read_text().splitlines()) == 2


def test_an_experiment_that_changes_nothing_may_be_repeated(cli: Any) -> None:
    Path("my/experiment").mkdir(parents=True)
    Path("my/experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mlp_2nn\ntrainer:\n  batch_size: 64\n"
    )
    own = ("--config-dir=my", "experiment=mine")
    assert cli(*own, *RUN, "hydra.run.dir=run").code == 0
    assert cli("resume=run", "strategy.rounds=2").code == 0
    assert cli(*own, "resume=run", "strategy.rounds=3").code == 0
    Path("my/experiment/mine.yaml").write_text("# @package _global_\ntrainer:\n  batch_size: 32\n")
    assert "trainer.batch_size was 64, is 32" in cli(*own, "resume=run", "strategy.rounds=4").err


def test_data_and_outputs_follow_their_folders(cli: Any) -> None:
    from flrl.cli.resuming import _linked

    paths = {"output_dir": "/runs/1", "data_dir": "data"}
    node = {"save_dir": "/runs/1", "root": "data/mine", "other": "/runs/10", "list": ["/runs/1/csv"]}
    linked = {"save_dir": "${paths.output_dir}", "other": "/runs/10", "list": ["${paths.output_dir}/csv"]}
    assert _linked(node, paths, "logger") == {**node, **linked}
    assert _linked(node, paths, "dataset")["root"] == "${paths.data_dir}/mine"


@pytest.mark.parametrize("wrong", ["seed=abc", "strategy=nothing", "nothing=1"])
def test_nothing_of_a_resume_stays_in_the_process(cli: Any, wrong: str) -> None:
    assert cli(*RUN, "hydra.run.dir=run").code == 0
    done = cli("resume=run", wrong)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "resumed" not in cli("strategy=nothing").err


@pytest.mark.slow
def test_a_resume_may_be_the_first_of_several_commands_of_a_process(cli: Any) -> None:
    """Hydra registers its own configurations with the first command; those a resume adds go, the others stay."""
    assert cli("strategy.rounds=1", "logger=none", "hydra.run.dir=run").code == 0
    code = """
import sys
from flrl.train import main
for rounds in (2, 3):
    sys.argv = ["flrl-train", "resume=run", f"strategy.rounds={rounds}", "logger=none", "hydra.run.dir=run"]
    main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("resumed after round") == 2
