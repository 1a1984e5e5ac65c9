"""Whole runs with malicious clients: what is in the files, what a resume and a configuration of before know."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flrl.evaluate import main as evaluate
from flrl.verify import main as verify

DOCS = Path(__file__).parents[2] / "docs" / "adversaries.md"
SHORT = ("logger=none", "callbacks.checkpoint.every=1", "model/optimizer=sgd", "evaluation.every=1")


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_says_who_lied_and_goes_on_where_it_was(cli: Any) -> None:
    """Mimic's direction and free riders' models come from the checkpoint; ids are in the tables."""
    common = ("adversary=mimic", "adversary.warmup=2", "adversary.clients=[2,7]", "log_clients=true", *SHORT)
    krum = ("strategy/aggregator=krum", "strategy.aggregator.num_malicious=2")
    assert cli(*common, *krum, "strategy.rounds=4", "hydra.run.dir=whole").code == 0
    assert cli(*common, *krum, "strategy.rounds=2", "hydra.run.dir=part").code == 0
    done = cli("resume=part", "hydra.run.dir=part", "strategy.rounds=4")
    assert done.code == 0, done.err
    digests = [[row["digest"] for row in rows(f"{name}/metrics.jsonl")] for name in ("whole", "part")]
    assert digests[0] == digests[1]
    assert rows("whole/digests.jsonl") == rows("part/digests.jsonl")
    last = rows("whole/digests.jsonl")[-1]
    assert last["malicious"] == [2, 7]
    assert len(last["filtered"]) == 9
    clients = rows("whole/clients.jsonl")[-10:]
    assert [row["client_id"] for row in clients if row["malicious"]] == [2, 7]
    assert [row["client_id"] for row in clients if row["filtered"]] == last["filtered"]
    metrics = rows("whole/metrics.jsonl")[-1]
    assert (metrics["adversary/num"], metrics["aggregator/rejected"]) == (2, 9)
    found = len({2, 7} & {*last["filtered"]})
    assert metrics["aggregator/recall"] == pytest.approx(found / 2)
    assert metrics["aggregator/precision"] == pytest.approx(found / 9)


def test_a_configuration_without_an_adversary_is_one_of_honest_clients(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("strategy.rounds=1", "hydra.run.dir=run", *SHORT).code == 0
    path = Path("run/.hydra/config.yaml")
    config = yaml.safe_load(path.read_text())
    assert config.pop("adversary")["_target_"] == "flrl.adversaries.Nobody"
    path.write_text(yaml.safe_dump(config))
    for entry, name in ((evaluate, "flrl-evaluate"), (verify, "flrl-verify")):
        monkeypatch.setattr("sys.argv", [name, "run=run"])
        entry()
    done = cli("resume=run", "hydra.run.dir=run", "strategy.rounds=2")
    assert done.code == 0, done.err
    refused = cli("resume=run", "hydra.run.dir=run", "strategy.rounds=3", "adversary=sign_flip")
    assert refused.code == 1
    assert "adversary._target_ was flrl.adversaries.Nobody, is flrl.adversaries.SignFlip" in refused.err


def test_the_examples_of_the_docs_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block, str(DOCS), "exec"), names)
    assert names["Lazy"](clients=2).malicious(3, 0)
