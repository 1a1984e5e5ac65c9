"""What the W&B logger tells W&B, seen from the other side of `wandb.Run`."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from flrl.callbacks.base import RunInfo
from flrl.logging.secrets import masked, masked_arguments
from flrl.logging.wandb import FlrlWandbLogger, _of_clients
from flrl.types import ClientReport, RoundRecord


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlrlWandbLogger]:
    """A logger whose W&B run is online, and has steps 0 to 2."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "partition.npz").write_bytes(b"partition")
    (tmp_path / "model.safetensors").write_bytes(b"model")
    made = FlrlWandbLogger(save_dir=str(tmp_path), project="p", name="n", group="g", tags=[], offline=False, target=0.5)
    made._experiment = MagicMock(offline=False, starting_step=3, summary={})
    return made


def test_the_command_that_sends_an_offline_run_is_quoted(logger: FlrlWandbLogger) -> None:
    logger._experiment = MagicMock(offline=True, dir="/a b/wandb/offline-run-1-x/files", id="x")
    assert logger.hint() == "wandb sync '/a b/wandb'/offline-run-*-x"


def info(folder: Path, **changed: Any) -> RunInfo:
    data = SimpleNamespace(hash="0123456789abcdef", label_counts=lambda: None)
    config = {"optimized_metric": "test/accuracy", **changed}
    return RunInfo("a/b", folder, 0, 5, (), config, "", SimpleNamespace(), data)  # type: ignore[arg-type]


def record(round: int, accuracy: float) -> RoundRecord:
    return RoundRecord(round, {"test/accuracy": accuracy, "comm/up_bytes": 3.0, "comm/down_bytes": 4.0}, "d")


def test_online_the_server_says_which_rounds_it_lacks(logger: FlrlWandbLogger, tmp_path: Path) -> None:
    logger.log_start(info(tmp_path))
    for round, accuracy in enumerate((0.1, 0.2, 0.5, 0.4, 0.6)):
        logger.log_round(None, record(round, accuracy), {"test/accuracy": accuracy})
    steps = [call.kwargs["step"] for call in logger.experiment.log.call_args_list]
    assert steps == [3, 4]
    assert logger.experiment.summary == {"rounds_to_target": 2.0, "bytes_to_target": 21.0}


def test_the_summary_has_the_best_of_all_rounds(logger: FlrlWandbLogger, tmp_path: Path) -> None:
    logger.log_start(info(tmp_path))
    history = [record(round, accuracy) for round, accuracy in enumerate((0.1, 0.6, 0.2, 0.3, 0.5))]
    for done in history:
        logger.log_round(None, done, done.metrics)
    logger.log_end(SimpleNamespace(round=5), history)  # type: ignore[arg-type]
    assert logger.experiment.summary["test/accuracy"] == {"max": 0.6, "last": 0.5}
    assert logger.experiment.define_metric.call_args.args == ("test/accuracy",)
    assert logger.experiment.define_metric.call_args.kwargs["summary"] == "max,last"


def test_the_partition_is_used_and_the_model_made(logger: FlrlWandbLogger, tmp_path: Path) -> None:
    logger.log_start(info(tmp_path))
    used = logger.experiment.use_artifact.call_args.args[0]
    assert (used.name, used.type) == ("partition-0123456789ab", "partition")
    assert [*used.manifest.entries] == ["partition.npz"]
    logger.log_end(SimpleNamespace(round=5), [record(5, 0.6)])  # type: ignore[arg-type]
    made = logger.experiment.log_artifact.call_args.args[0]
    assert (made.name, made.type) == ("a-b-model", "model")
    assert made.metadata == {"round": 5, "partition": "0123456789abcdef", "digest": "d"}


@pytest.mark.parametrize(("metric", "reached"), [("test/loss", 0.5), ("test/accuracy", 1.25)])
def test_a_target_is_reached_from_above_by_losses(
    metric: str, reached: int, logger: FlrlWandbLogger, tmp_path: Path
) -> None:
    logger.log_start(info(tmp_path, optimized_metric=metric))
    for round, value in enumerate((0.7, 0.3, 0.8) if metric == "test/loss" else (0.3, 0.4, 0.8)):
        logger.log_round(None, RoundRecord(round, {metric: value}, ""), {})
    assert logger.experiment.summary["rounds_to_target"] == pytest.approx(reached)
    logger.target, logger._reached, logger._rows = None, False, []
    logger.log_start(info(tmp_path, target={"metric": metric, "value": 0.5}))
    logger.log_round(None, RoundRecord(0, {metric: 0.5}, ""), {})
    assert logger.experiment.summary["rounds_to_target"] == 0.0


def test_a_table_has_two_hundred_clients_and_a_histogram_all() -> None:
    reports = [
        ClientReport(c, 1, 1, {"train/loss": float(c)}, 4, malicious=c == 0, rejected="no" if c == 999 else None)
        for c in range(1000)
    ]
    found = _of_clients(reports)
    ids = [row[0] for row in found["clients/table"].data]
    assert (len(ids), ids[0], ids[-1]) == (200, 0, 999)
    assert [row[4] for row in found["clients/table"].data][:: len(ids) - 1] == ["malicious", "rejected"]
    assert sum(found["clients/histogram/train/loss"].histogram) == 1000


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct horse")
    config = {
        "a": [{"apiKey": "x", "hf_token": 1, "password": None}],
        "secrets": {"inner": "kept by its own name", "access-key": ["x"]},
        "num_tokens": 3,
        "tokenizer": "bert",
        "url": "https://me:correct horse@host",
    }
    assert masked(config) == {
        "a": [{"apiKey": "***", "hf_token": "***", "password": None}],
        "secrets": {"inner": "kept by its own name", "access-key": "***"},
        "num_tokens": 3,
        "tokenizer": "bert",
        "url": "***",
    }
    given = ["+vars.wandb_api_key=x", "vars={token:1}", "seed=1", "vars.u=a correct horse", "-m"]
    assert masked_arguments(given) == ["+vars.wandb_api_key=***", "vars=***", "seed=1", "vars.u=***", "-m"]
