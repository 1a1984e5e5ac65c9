"""What a compressor goes with, and what it refuses before the first round."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.config import CONF_DIR
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.transforms import (
    ClipNorm,
    Eden,
    GaussianNoise,
    GradientNoise,
    GradientPruning,
    PowerSGD,
    RandomK,
    Sign,
    Soteria,
    TopK,
    Transform,
)
from tests.test_readme import blocks_of
from tests.toys import Normed, fit, make_worker, setup_of
from tests.transforms.compression.table import COMPRESSORS, sent
from tests.transforms.test_apply import SGD


class Hiding(Transform):
    """Says that it hides updates."""

    hides_updates = True


def checked(transforms: Mapping[str, Transform]) -> None:
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=transforms)
    setup_of(Normed(), strategy=strategy).check()


CLIP, NOISE = ClipNorm(max_norm=1.0), GradientNoise(std=0.1)
REFUSED: dict[str, tuple[dict[str, Transform], str]] = {
    "clipping after": ({"top_k": TopK(share=0.1), "clip": CLIP}, "clip: would change what top_k has encoded: put clip"),
    "noise after": ({"drive": Eden(), "noise": NOISE}, "noise: would change what drive has encoded: put noise first"),
    "pruning after": (
        {"sign": Sign(), "prune": GradientPruning(share=0.5)}, "prune: sign encodes updates already, leave one"
    ),
    "noise after pruning": (
        {"prune": GradientPruning(share=0.5), "noise": NOISE}, "noise: would change what prune has encoded: put noise"
    ),
    "columns set to zero after": (
        {"q": PowerSGD(), "soteria": Soteria(layer="net.0", share=0.5)}, "soteria: would change what q has encoded: put"
    ),
    "two": ({"a": TopK(share=0.1), "b": RandomK(share=0.1)}, "b: a encodes updates already, leave one of them out"),
    "hidden": ({"mask": Hiding(), "a": TopK(share=0.1)}, "mask: hides each update, which a encodes: leave one out"),
    "hidden after": ({"a": TopK(share=0.1), "mask": Hiding()}, "mask: hides each update, which a encodes: leave one"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_by_name(case: str) -> None:
    transforms, message = REFUSED[case]
    with pytest.raises(ValueError, match=rf"^strategy\.transforms\.{message}"):
        checked(transforms)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_all_go_last_and_before_what_the_server_does(name: str) -> None:
    soteria = Soteria(layer="net.0", share=0.5)
    checked(
        {"soteria": soteria, "clip": CLIP, "noise": NOISE, "last": COMPRESSORS[name](), "gauss": GaussianNoise(std=1)}
    )


def test_the_compressor_that_the_page_shows() -> None:
    page = (Path(__file__).parents[3] / "docs" / "compression.md").read_text()
    namespace: dict[str, Any] = {}
    exec(next(text for _, text in blocks_of(page) if text.startswith("# my_compressor.py")), namespace)
    update, memory = sent(namespace["Halves"](error_feedback=True), [1.0, -2.0, 3.0, 4.0, 5.0])
    assert update.vectors["update"].tolist() == [1.0, -2.0, 0.0, 0.0, 0.0]
    assert update.payload == {"update": 2 * 4}
    assert memory["error"].tolist() == [0.0, 0.0, 3.0, 4.0, 5.0]
    found = {path.stem: path.read_text() for path in (CONF_DIR / "strategy/transforms").glob("*.yaml")}
    coders = [type(make()).__name__ for make in COMPRESSORS.values()] + ["Downlink", "FederatedDropout"]
    named = [name for name, text in found.items() if any(f"flrl.transforms.{coder}\n" in text for coder in coders)]
    assert len(named) == 16
    assert [name for name in named if f"`{name}`" not in page] == []


def test_bytes_of_a_round_are_those_of_buffers_and_of_what_is_sent_besides() -> None:
    """Two layers and BatchNorm: 5 x 8 + 8, 8 + 8, 8 x 3 + 3 numbers, 16 statistics in float32."""
    transforms = {"clip": ClipNorm(max_norm=1.0), "sign": Sign(error_feedback=True)}
    strategy = FedAvg(rounds=2, sampler=AllClients(), server_optimizer=SGD, transforms=transforms)
    state, history = fit(make_worker(strategy, module=Normed()))
    assert [record.metrics["comm/up_bytes"] for record in history] == [3 * (4 + -(-91 // 8) + 4 * 16)] * 2
    assert state.memory[0]["transforms/sign/error"].dtype == torch.float32
    assert len(state.memory[0]["transforms/sign/error"]) == 91 + 16
