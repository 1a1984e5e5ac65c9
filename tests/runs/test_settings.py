"""What results follow from stays as it was when a run is resumed."""

import copy
from pathlib import Path
from typing import Any

import pytest

from flrl.runs.settings import continued, differences

BASE: dict[str, Any] = {
    "name": "train", "seed": 0, "model_seed": 0, "sampling_seed": 0, "resume": None, "tags": [], "holdout": 0.0,
    "optimized_metric": "test/accuracy", "log_clients": False, "on_client_failure": "stop",
    "paths": {"data_dir": "data", "output_dir": "/runs/1"},
    "dataset": {"_target_": "mine.data", "root": "data/mine", "data_dir": "data", "download": True, "size": 8},
    "partition": {"seed": 0, "_target_": "flrl.data.partitions.iid", "_partial_": True, "num_clients": 10},
    "model": {"_target_": "mine.Net", "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}},
    "trainer": {"_target_": "flrl.trainers.TracedTrainer", "fuse": False, "compile": False, "batch_size": 64},
    "strategy": {"_target_": "flrl.strategies.FedAvg", "rounds": 5, "min_clients": 1, "transforms": []},
    "backend": {"_target_": "flrl.backends.SerialBackend", "threads": 1, "device": "cpu"},
    "evaluation": {"_target_": "flrl.evaluation.Evaluator", "every": 1},
    "callbacks": {"checkpoint": {"every": 1}}, "logger": {"csv": {"_target_": "x"}},
}  # fmt: skip


def changed(**values: Any) -> dict[str, Any]:
    """The configuration with other values at `a__b`; `...` takes the key away."""
    config = copy.deepcopy(BASE)
    for path, value in values.items():
        *above, key = path.split("__")
        node = config
        for name in above:
            node = node[name]
        if value is ...:
            del node[key]
        else:
            node[key] = value
    return config


FREE = [
    {"name": "other", "tags": ["a"], "resume": "auto", "log_clients": True, "optimized_metric": None},
    {"on_client_failure": "drop", "strategy__rounds": 9, "strategy__min_clients": 4},
    {"logger": None, "callbacks": None, "evaluation__every": 3},
    {"backend": {"_target_": "flrl.backends.ProcessBackend", "workers": 2, "threads": 1, "device": "cpu"}},
    {"backend__portable": False},
    {"trainer": {"_target_": "flrl.trainers.EagerTrainer", "batch_size": 64}},
    {"trainer": {"_target_": "flrl.trainers.LightningTrainer", "trainer_options": {}, "batch_size": 64}},
    {"paths__data_dir": "/elsewhere", "dataset__root": "/elsewhere/mine", "dataset__data_dir": "/elsewhere"},
    {"dataset__download": False, "dataset__data_dir": "there", "paths__output_dir": "/runs/2"},
    {"model_seed": ..., "sampling_seed": ..., "partition__seed": ...},
]  # fmt: skip


@pytest.mark.parametrize("values", FREE, ids=lambda values: " ".join(values))
def test_what_may_change(values: dict[str, Any]) -> None:
    assert differences(BASE, changed(**values)) == []
    assert differences(changed(**values), BASE) == []


BOUND = {
    "seed": 1,
    "model_seed": 1,
    "sampling_seed": 1,
    "partition__seed": 1,
    "partition__num_clients": 9,
    "holdout": 0.1,
    "dataset__size": 9,
    "dataset__root": "other/mine",
    "model__optimizer__lr": 0.2,
    "trainer__batch_size": 8,
    "trainer__fuse": True,
    "trainer__compile": True,
    "trainer___target_": "flrl.trainers.VectorizedTrainer",
    "strategy___target_": "flrl.strategies.FedProx",
    "strategy__transforms": [{"_target_": "x"}],
    "backend__threads": 2,
    "backend__device": "cuda",
    "backend__portable": True,
}


@pytest.mark.parametrize(("path", "value"), BOUND.items(), ids=BOUND.keys())
def test_what_may_not(path: str, value: Any) -> None:
    key = path.replace("___target_", "._target_").replace("__", ".")
    was: Any = BASE
    for name in key.split("."):
        was = was.get(name) if isinstance(was, dict) else None
    found = dict(differences(BASE, changed(**{path: value})))
    assert list(found) == [key]
    assert found[key][1] == value
    assert found[key][0] == was or was is None


def test_another_device_of_a_kind_gives_the_same_bits() -> None:
    assert differences(changed(backend__device="cuda:0"), changed(backend__device="cuda:1")) == []


def test_auto_stands_for_the_engine_that_the_run_had() -> None:
    earlier = changed(trainer={"_target_": "flrl.trainers.VectorizedTrainer", "width": 4, "batch_size": 64})
    auto = {"_target_": "flrl.trainers.choose_engine", "batch_size": 64, "memory_format": "contiguous"}
    assert continued(changed(trainer=auto), earlier, Path("run"))["trainer"] == earlier["trainer"]
    with pytest.raises(ValueError, match=r"trainer\.batch_size was 64, is 8\."):
        continued(changed(trainer=auto | {"batch_size": 8}), earlier, Path("run"))


def test_many_changes_are_one_line() -> None:
    values = {"seed": 1, "holdout": 0.5, "model": {"_target_": "mine.Other", "depth": 3}, "trainer__batch_size": 8}
    with pytest.raises(ValueError, match="nothing was changed") as error:
        continued(changed(**values), BASE, Path("run"))
    assert str(error.value) == (
        "the results of run follow from settings that are not what they were: seed was 0, is 1; "
        "holdout was 0.0, is 0.5; model._target_ was mine.Net, is mine.Other; model.depth was not set, is 3; "
        "trainer.batch_size was 64, is 8; and 2 more. Resume it with what it had, or start a run of its own in another "
        "folder without resume; nothing was changed"
    )


RUN = ("strategy.rounds=3", "logger=none", "partition.num_clients=3", "hydra.run.dir=run")
WAYS = {"in place": ("resume=run",), "elsewhere": ("resume=run", "hydra.run.dir=other"), "auto": (*RUN, "resume=auto")}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_resume_with_other_settings_is_refused(cli: Any, way: tuple[str, ...]) -> None:
    assert cli(*RUN).code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    done = cli(*way, "strategy.rounds=4", "trainer.batch_size=8", "model.optimizer.lr=0.2")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "model.optimizer.lr was 0.1, is 0.2; trainer.batch_size was 32, is 8. Resume it with what it had" in done.err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    done = cli(*way, "strategy.rounds=4", "trainer=eager", "evaluation.every=2", "callbacks.checkpoint.keep=3")
    assert (done.code, done.err) == (0, "")


@pytest.mark.slow
def test_a_job_of_a_sweep_is_refused_too(cli: Any) -> None:
    sweep = ("-m", "seed=0,1", "strategy.rounds=2", "logger=none", "resume=auto", "hydra.sweep.dir=sweep")
    assert cli(*sweep).code == 0
    before = {path: path.read_bytes() for path in Path("sweep").rglob("*/*") if path.is_file()}
    done = cli(*sweep, "trainer.batch_size=8")
    assert done.code == 1
    assert "trainer.batch_size was 32, is 8. Resume it with what it had" in done.err
    after = {path: path.read_bytes() for path in Path("sweep").rglob("*/*") if path.is_file()}
    assert {path: data for path, data in after.items() if ".hydra.before" not in path.parts} == before
    done = cli(*sweep, "strategy.rounds=3")
    assert done.code == 0
    for job in ("0", "1"):
        assert len(Path("sweep", job, "metrics.jsonl").read_text().splitlines()) == 3
        assert not Path("sweep", job, ".hydra.before").exists()


def test_rounds_grow_and_do_not_shrink_below_what_is_done(cli: Any) -> None:
    assert cli(*RUN).code == 0
    done = cli("resume=run", "strategy.rounds=2")
    message = "strategy.rounds=2: run has 3 rounds already; there may be more of them, not fewer; nothing was changed"
    assert done.err == f"error: {message}\n"
    assert cli("resume=run", "strategy.rounds=3").code == 0
    assert cli("resume=run", "strategy.rounds=4").code == 0


def test_a_folder_without_a_whole_configuration_is_refused(cli: Any) -> None:
    assert cli(*RUN).code == 0
    Path("run/.hydra/config.yaml").write_text("name: [")
    done = cli("resume=run", "strategy.rounds=4")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert done.err.startswith("error: run/.hydra.before/config.yaml cannot be read: while parsing a flow ")
    assert Path("run/.hydra/config.yaml").read_text() == "name: ["
    Path("run/.hydra/config.yaml").unlink()
    for resume in ("run", "auto"):
        done = cli(f"resume={resume}", "hydra.run.dir=run", "strategy.rounds=3")
        assert done.err == (
            f"error: resume={resume}: there is no run in this folder (run/.hydra/config.yaml is missing)\n"
        )
