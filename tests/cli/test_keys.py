"""What was meant by a key that does not exist."""

from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from flrl.cli.groups import choices_of
from flrl.cli.keys import composed, meant, unknown
from flrl.config import TrainConfig

TREE = {
    "seed": 0,
    "strategy": {"_target_": "flrl.strategies.FedAvg", "rounds": 5, "sampler": {"num": None}},
    "model": {"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}},
    "server": {"lr": 1.0},
}


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("rounds=5", "; did you mean strategy.rounds?"),
        ("sampler.num=3", "; did you mean strategy.sampler.num?"),
        ("lr=1", "; did you mean model.optimizer.lr or server.lr?"),
        ("optimizer.lr=1", "; did you mean model.optimizer.lr?"),
        ("strategy.rouns=5", "; did you mean strategy.rounds?"),
        ("stratgy=fedavg", "; did you mean strategy?"),
        ("sampler=all", "; did you mean strategy/sampler?"),
        (
            "strategy.min_clients=2",
            " in the configuration, but flrl.strategies.FedAvg takes it: +strategy.min_clients=2",
        ),
        ("+model.optimizer.momntum=2", "; did you mean +model.optimizer.momentum of torch.optim.SGD?"),
        ("strategy.lipschitz=2", " with the present choice; strategy=qfedavg has it"),
        ("strategy.nothing=2", "; strategy has: rounds, sampler"),
        ("xyz=2", "; the top level has: seed, strategy, model, server"),
    ],
)
def test_unknown(override: str, suggestion: str) -> None:
    key = override.partition("=")[0].lstrip("+")
    assert unknown(key, override, TREE) == f"{override}: there is no such key{suggestion}"


def test_meant_prefers_the_longest_common_end_then_siblings() -> None:
    known = ["a.b.size", "c.b.size", "c.sizes", "d.sized"]
    assert meant("c.b.size", known) == ["c.b.size"]
    assert meant("x.size", known) == ["a.b.size", "c.b.size"]
    assert meant("d.sizer", ["c.sizes", "d.sizes"]) == ["c.sizes", "d.sizes"]
    assert meant("nothing", known) == []


def test_choices_that_have_a_key() -> None:
    with_alpha = ("dirichlet", "dirichlet_equal", "inner_dirichlet", "mixture", "quantity_skew")
    assert choices_of("partition", "alpha") == [f"partition={name}" for name in with_alpha]
    assert choices_of("model.net", "hidden") == [f"model/net={net}" for net in ("char_lstm", "mlp_2nn", "regression")]
    assert choices_of("trainer", "fuse") == ["trainer=traced"]
    assert choices_of("trainer", "memory_format") == ["trainer=eager", "trainer=lightning", "trainer=traced"]
    assert choices_of("backend", "timeout_s") == ["backend=mpi", "backend=process"]
    assert choices_of("nothing", "hidden") == choices_of("", "hidden") == []


def test_the_configuration_to_look_in_has_the_groups_that_were_chosen(tmp_path: Path) -> None:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("defaults: [fedavg, _self_]\nsharpness: 3\n")
    own = [f"--config-dir={tmp_path}", "strategy=mine", "partition=dirichlet,iid", "rounds=5", "strategy.roundz=1"]
    found = composed("train", own)
    assert found["strategy"]["sharpness"] == 3
    assert found["partition"]["alpha"] == 0.5
    both = composed("train", ["callbacks=[default,early_stopping]"])["callbacks"]
    assert [*both] == ["progress", "checkpoint", "nan_guard", "report", "early_stopping"]
    assert composed("train", ["--config-dir", str(tmp_path), "strategy=mine"])["strategy"]["sharpness"] == 3
    assert "sharpness" not in composed("train", ["strategy=nothing"])["strategy"]
