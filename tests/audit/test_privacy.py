"""`flrl-audit`: broken promises are found, kept ones are not called broken, and what is missing has a reason."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flrl.adversaries.client_canaries import direction, is_in
from flrl.attacks.membership_loss import MembershipLoss
from flrl.audit.__main__ import main
from flrl.audit.audited import Settings
from flrl.audit.canary_scores import canaries_of, sample_scores
from flrl.audit.lower_bounds import one_run
from flrl.audit.privacy import audit
from flrl.data import TensorSource
from flrl.evaluate_run import saved_config
from flrl.privacy import epsilon, sampled_gaussian
from flrl.process_setup import prepare
from flrl.recipe import Recipe
from flrl.results import load
from flrl.train import main as train_main
from tests.toys import Linear, blobs

CLIENTS, ROUNDS, BOUND = 60, 2, 0.1
ALL_CANARIES = (
    "adversary=client_canaries", f"adversary.clients={CLIENTS}", f"adversary.norm={BOUND}",
    "dataset=synthetic_classification", "dataset.num_samples=120", "dataset.test_samples=40",
    "dataset.input_shape=[400]",
    f"partition.num_clients={CLIENTS}", "strategy/sampler=all", f"strategy.rounds={ROUNDS}",
    "strategy/transforms=dp", f"strategy.transforms.dp.clip={BOUND}",
    "evaluation.every=9", "logger=none", "callbacks=checkpoint",
)  # fmt: skip
BOTH = (
    "adversary=client_canaries", "adversary.clients=[0,2,5]", "dataset=digits_canaries", "dataset.num=60",
    "partition.num_clients=6", "strategy.rounds=2", "evaluation.every=9", "logger=none", "callbacks=checkpoint",
)  # fmt: skip
Finished = Callable[..., Path]


def noise(multiplier: float) -> str:
    return f"strategy.transforms.dp.noise_multiplier={multiplier}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`finished(*overrides)` is the folder of that run, which is made once; of "broken" ones the noise is left out."""
    made: dict[tuple[str, ...], Path] = {}

    def folder_of(*overrides: str) -> Path:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("audited") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HYDRA_FULL_ERROR", "0")
                patch.setattr("flrl.data.pictures.save_partition", lambda data, path: None)
                if overrides[0] == "broken":
                    patch.setattr("flrl.transforms.dp.normal", lambda size, generator: torch.zeros(size).double())
                given = [override for override in overrides if override != "broken"]
                patch.setattr("sys.argv", ["flrl-train", *given, f"hydra.run.dir={folder}"])
                train_main()
            made[overrides] = folder
        return made[overrides]

    return folder_of


def by_part(rows: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["part"] == part]


def test_a_run_without_its_noise_is_a_violation_and_a_true_bound_is_not(finished: Finished) -> None:
    folder = finished("broken", *ALL_CANARIES, noise(4.0))
    claimed = epsilon(sampled_gaussian(4.0, 1.0, ROUNDS), delta=1e-5)
    found = audit("broken", [folder], Settings(guesses=(0.8,)))
    (upper,) = by_part(found.rows, "upper bound")
    assert (upper["value"], upper["delta"], upper["unit"]) == (pytest.approx(claimed, rel=1e-9), 1e-5, "client")
    (bound,) = by_part(found.rows, "lower bound by guesses")
    q = 0.05 ** (1 / 48)
    assert (bound["guesses"], bound["correct"], bound["canaries"], bound["unit"]) == (48, 48, 60, "client")
    assert bound["value"] == pytest.approx(math.log(q / (1 - q)), abs=0.05)  # delta takes a little
    assert bound["verdict"] == f"VIOLATION: lower bound {bound['value']:.4g} above the stated {claimed:.4g}"
    assert claimed == pytest.approx(1.4, abs=0.2)
    assert [row["value"] for row in by_part(found.rows, "canaries")] == [1.0, 1.0]
    kept = audit("kept", [folder], Settings(epsilon=20.0))
    assert by_part(kept.rows, "lower bound by guesses")[0]["verdict"] == "no violation found"
    other = audit("other", [folder], Settings(epsilon=1.0, unit="sample"))
    assert by_part(other.rows, "lower bound by guesses")[0]["verdict"] == (
        "not compared: the stated bound is for one sample, the canaries are clients"
    )


@pytest.mark.slow
def test_a_run_with_its_noise_is_no_violation(finished: Finished) -> None:
    folder = finished(*ALL_CANARIES, noise(4.0))
    claimed = epsilon(sampled_gaussian(4.0, 1.0, ROUNDS), delta=1e-5)
    found = audit("right", [folder], Settings())
    assert by_part(found.rows, "upper bound")[0]["value"] == pytest.approx(claimed, rel=1e-9)
    (bound,) = by_part(found.rows, "lower bound by guesses")
    assert bound["value"] < claimed
    assert bound["verdict"] == "no violation found"


def test_clients_scores_are_inner_products_with_how_far_the_model_has_gone(finished: Finished) -> None:
    folder = finished("broken", *ALL_CANARIES, noise(4.0))
    (scored,) = canaries_of(folder, saved_config(folder, None))
    run = load(folder)
    last = torch.cat([tensor.flatten() for tensor in run.model().state_dict().values()]).double()
    first = torch.cat([tensor.flatten() for tensor in Recipe(run.config).module().state_dict().values()]).double()
    expected = [direction(0, client, len(last)) @ (last - first).numpy() for client in range(CLIENTS)]
    assert np.allclose(scored.scores, expected, atol=1e-12)
    assert scored.included.tolist() == [is_in(0, client) for client in range(CLIENTS)]


def test_samples_scores_are_the_losses_that_they_have_lost() -> None:
    torch.manual_seed(0)
    model = prepare(Linear(), threads=1, device="cpu")
    samples = blobs(7)
    first = model.vector.detach().clone()
    models = [first + 0.1, first - 0.2]

    def losses(vector: torch.Tensor) -> torch.Tensor:
        model.load(vector)
        with torch.no_grad():
            scores = model.module(samples.inputs).double()
        return torch.nn.functional.cross_entropy(scores, samples.targets, reduction="none")

    expected = losses(first) - (losses(models[0]) + losses(models[1])) / 2
    given = TensorSource(samples.inputs, samples.targets)
    found = sample_scores(model.module, model.layout, first, models, given)
    assert np.allclose(found, expected.numpy(), atol=1e-12)


def test_the_command_writes_one_table(finished: Finished, cli: Any) -> None:
    folder = finished(*BOTH)
    done = cli(f"run={folder}", main=main)
    assert done.code == 0, done.err
    assert "no stated bound was tested" in done.out
    with (folder / "audit" / "result.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts = [(row["part"], row["number"], row["unit"]) for row in rows]
    assert parts[:3] == [
        ("upper bound", "epsilon", ""), ("lower bound by guesses", "epsilon", "client"),
        ("lower bound by rates", "epsilon", "client"),
    ]  # fmt: skip
    assert rows[0]["missing"] == "no bound stated"
    assert rows[2]["missing"] == "1 run: needs at least 4, with other seeds, below one folder"
    assert {"membership_client", "membership_global", "label_counts", "inversion"} <= {row["part"] for row in rows}
    assert all(row["sees"] or row["missing"] for row in rows)
    assert all(row["value"] or row["missing"] for row in rows)
    result = json.loads((folder / "audit" / "result.json").read_text())
    assert result["verdict"] == "no stated bound was tested"
    assert len(result["rows"]) == len(rows)
    with (folder / "audit" / "canaries.csv").open() as file:
        coins = list(csv.DictReader(file))
    assert [row["unit"] for row in coins] == ["client"] * 3 + ["sample"] * 60
    with np.load(folder / "partition.npz") as saved:
        assert [int(row["id"]) for row in coins[3:]] == saved["canaries"].tolist()
        assert [row["included"] == "True" for row in coins[3:]] == saved["included"].tolist()
    scores, included = (np.array([float(r["score"]) for r in coins[3:]]), saved_coins(coins[3:]))
    again = one_run([scores], [included], delta=1e-5, shares=(0.1, 0.5, 0.8))
    (bound,) = [row for row in by_part(rows, "lower bound by guesses") if row["unit"] == "sample"]
    assert (float(bound["value"]), int(bound["correct"])) == (again.epsilon, again.correct)
    for name in ("bounds.png", "roc.png"):
        assert (folder / "audit" / name).stat().st_size > 5_000


def saved_coins(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([row["included"] == "True" for row in rows])


def test_what_cannot_be_done_has_its_reason_and_the_rest_is_done(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished(*BOTH), folder)
    (folder / "model.safetensors").unlink()
    found = audit("run", [folder], Settings(epsilon=1.0))
    assert [row["part"] for row in found.rows] == [
        "upper bound", "lower bound by guesses", "lower bound by rates", "canaries",
    ]  # fmt: skip
    assert all("model.safetensors is missing" in row["missing"] for row in found.rows[1:])
    (folder / "partition.npz").unlink()
    found = audit("run", [folder], Settings(attacks={"members": MembershipLoss()}))
    assert all("partition.npz" in row["missing"] for row in found.rows[1:])
    assert found.rows[-1]["part"] == "members"
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"the run has not finished \(round 2 of 2\): resume="):
        audit("run", [folder], Settings())


def test_the_bound_is_that_of_the_summary_or_of_the_last_row(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished(*BOTH), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[-1] |= {"privacy/epsilon": 2.5, "privacy/delta": 1e-4}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (upper,) = by_part(audit("run", [folder], Settings()).rows, "upper bound")
    assert (upper["value"], upper["delta"], upper["unit"]) == (2.5, 1e-4, "client")
    summary = json.loads((folder / "summary.json").read_text())
    summary["privacy"] = {"epsilon": 3.5, "delta": 1e-6, "unit": "sample"}
    (folder / "summary.json").write_text(json.dumps(summary))
    found = audit("run", [folder], Settings())
    (upper,) = by_part(found.rows, "upper bound")
    assert (upper["value"], upper["delta"], upper["unit"]) == (3.5, 1e-6, "sample")
    assert {row["delta"] for row in by_part(found.rows, "lower bound by guesses")} == {1e-6}


def test_settings_that_cannot_be_are_refused() -> None:
    for name, value, words in (
        ("released", "some", "must be last or all"),
        ("confidence", 1.0, "must be above 0 and below 1"),
        ("guesses", [], "must be shares of the canaries"),
        ("guesses", [0.0], "must be shares of the canaries"),
        ("epsilon", -1.0, "must be at least 0 and finite, or null"),
        ("delta", 1.0, "must be at least 0 and below 1"),
        ("unit", "user", "must be client or sample"),
        ("round", 0, "must be at least 1"),
        ("candidates", 0, "must be at least 1"),
        ("seed", -1, "must be at least 0"),
    ):
        with pytest.raises(ValueError, match=rf"{name}=.*: {words}"):
            Settings(**{name: value})  # type: ignore[arg-type]
