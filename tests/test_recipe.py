"""What each seed is of, and how `partition.seed` travels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from flrl.recipe import Recipe
from flrl.seeding import Seeds
from flrl.verify import main as verify

RUN = (
    "partition=dirichlet", "strategy.sampler.num=4", "strategy.rounds=2", "trainer.shuffle=true", "logger=none",
    "evaluation.at_start=true", "hydra.run.dir=run",
)  # fmt: skip


def outcome(folder: str = "run") -> dict[str, Any]:
    """Partition, initial model, cohorts, first client's update, last model."""
    metrics = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    digests = [json.loads(line) for line in Path(folder, "digests.jsonl").read_text().splitlines()]
    with np.load(Path(folder, "partition.npz")) as partition:
        shared = str(partition["hash"])
    cohorts = [[*row["clients"]] for row in digests]
    return {"partition": shared, "model": metrics[0]["digest"], "cohorts": cohorts, "last": metrics[-1]["digest"]}


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ((), ()),
        (("seed=1",), ("partition", "model", "cohorts", "last")),
        (("partition.seed=1",), ("partition", "last")),
        (("model_seed=1",), ("model", "last")),
        (("sampling_seed=1",), ("cohorts", "last")),
        (("seed=1", "partition.seed=0", "model_seed=0", "sampling_seed=0"), ("last",)),
    ],
    ids=str,
)
def test_each_seed_moves_its_own(cli: Any, base: dict[str, Any], overrides: tuple[str, ...], changes: Any) -> None:
    assert cli(*RUN, *overrides).code == 0
    found = outcome()
    if not overrides:
        base.update(found)
    assert {name for name in found if found[name] != base[name]} == {*changes}
    assert cli("run=run", main=verify).code == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert [*summary["seeds"].values()] == [
        int(dict(override.split("=") for override in ("seed=0", *overrides)).get(name, "seed=1" in overrides))
        for name in ("seed", "partition.seed", "model_seed", "sampling_seed")
    ]


@pytest.mark.slow
def test_a_run_with_seeds_apart_is_resumed_to_the_same_end(cli: Any) -> None:
    apart = ("partition.seed=5", "model_seed=6", "sampling_seed=7")
    assert cli(*RUN, *apart, "strategy.rounds=4", "hydra.run.dir=whole").code == 0
    assert cli(*RUN, *apart).code == 0
    assert cli("resume=run", "strategy.rounds=4").code == 0
    assert outcome() == outcome("whole")
    assert cli("run=run", "rounds=3..4", main=verify).code == 0


def test_a_run_from_before_seeds_had_names_is_verified_evaluated_and_resumed(cli: Any) -> None:
    from flrl.evaluate import main as evaluate

    assert cli(*RUN).code == 0
    config = OmegaConf.load("run/.hydra/config.yaml")
    del config["model_seed"], config["sampling_seed"], config["partition"]["seed"]
    OmegaConf.save(config, "run/.hydra/config.yaml")
    for path in Path("run/checkpoints").glob("*/state.json"):
        meta = json.loads(path.read_text())
        for name in ("partition.seed", "model_seed", "sampling_seed"):
            del meta["identity"][name]
        path.write_text(json.dumps(meta))
    summary = json.loads(Path("run/summary.json").read_text())
    old = (
        "name",
        "seed",
        "rounds",
        "digest",
        "metrics",
        "wall_time_s",
        "partition",
        "command",
        "resumed_from",
        "versions",
    )
    Path("run/summary.json").write_text(json.dumps({name: summary[name] for name in old}))
    Path("run/environments.jsonl").unlink()
    done = cli("run=run", main=verify)
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    assert cli("run=run", main=evaluate).code == 0
    assert cli("resume=run", "strategy.rounds=4").code == 0
    assert cli("run=run", main=verify).code == 0


def halves(num_samples: int, labels: Any, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(num_samples) % 2


def seeded(num_samples: int, labels: Any, rng: np.random.Generator, *, seed: int) -> np.ndarray:
    assert seed == 9
    return rng.permutation(num_samples) % 2


class Halves:
    """A partition that is an object."""

    def __call__(self, num_samples: int, labels: Any, rng: np.random.Generator) -> np.ndarray:
        return halves(num_samples, labels, rng)


@pytest.mark.parametrize("target", ["halves\n_partial_: true", "seeded\n_partial_: true", "Halves"])
def test_a_partition_of_ones_own_has_a_seed(cli: Any, target: str) -> None:
    Path("my_conf/partition").mkdir(parents=True)
    Path("my_conf/partition/own.yaml").write_text(f"_target_: tests.test_recipe.{target}")
    done = cli("--config-dir=my_conf", "partition=own", "partition.seed=9", "strategy.rounds=1", "hydra.run.dir=run")
    assert done.code == 0, done.err
    rng = np.random.Generator(np.random.PCG64(_seed_of_partition(9)))
    owner = rng.permutation(1438) % 2
    with np.load("run/partition.npz") as partition:
        first = partition["indices"][: partition["ends"][0]]
    assert sorted(first.tolist()) == np.flatnonzero(owner == 0).tolist()


def _seed_of_partition(seed: int) -> int:
    from flrl.seeding import SERVER, seed_for

    return seed_for(seed, 0, SERVER, "partition")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": -1}, "seed=-1: must be at least 0 and below 2**63"),
        ({"seed": 0, "model_seed": 2**63}, f"model_seed={2**63}: must be at least 0 and below 2**63"),
        ({"seed": 0, "partition": {"seed": "a"}}, "partition.seed=a: must be a whole number"),
        ({"seed": 0, "sampling_seed": True}, "sampling_seed=True: must be a whole number"),
    ],
)
def test_seeds_are_checked(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        Recipe(config)
    assert str(error.value) == message


def test_seeds_follow_the_one_unless_they_are_set() -> None:
    assert Seeds.of({"seed": 3}) == Seeds(run=3, partition=3, model=3, sampling=3)
    apart = {"seed": 3, "partition": {"seed": 4}, "model_seed": 5, "sampling_seed": 6}
    assert Seeds.of(apart) == Seeds(run=3, partition=4, model=5, sampling=6)
