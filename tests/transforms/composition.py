"""What goes together: every pair of transforms, in both orders, and every transform with every rule and DP-SGD.

    python -m tests.transforms.composition

writes docs/composition.md from what the parts' checks say; tests/transforms/test_composition.py compares, and runs the
pairs that go together on several backends.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from flrl.aggregation import Aggregator
from flrl.cli.app import register_resolvers
from flrl.config import CONF_DIR, TrainConfig
from flrl.privacy.mechanism import mechanism_of
from flrl.sampling import AllClients
from flrl.setup import Setup
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer
from flrl.transforms import Transform
from tests.toys import Linear

PAGE = Path(__file__).parents[2] / "docs" / "composition.md"
CLIENTS = 8
TRANSFORMS = sorted(p.stem for p in (CONF_DIR / "strategy/transforms").glob("*.yaml") if p.stem != "none")
RULES = sorted(p.stem for p in (CONF_DIR / "strategy" / "aggregator").glob("*.yaml"))
SETTINGS: dict[str, dict[str, Any]] = {
    "soteria": {"layer": "net.0"},
    "dp_distributed": {"survivors": CLIENTS},
    "paillier": {"key_bits": 512},
    "dp_ftrl": {"sensitivity": 2.0},
    "federated_dropout": {"layers": {"net.0": "net.2"}},
}
"""What differs from a transform's yaml: layers of the test's module, small keys, what a run computes."""


class Deep(Linear):
    """Two layers, so that the first has units that can be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))  # type: ignore[assignment]


@cache
def composed(name: str, *overrides: str) -> DictConfig:
    """A yaml of conf/ with all that it is made of."""
    ConfigStore.instance().store("train_schema", node=TrainConfig)
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(name, [*overrides])


@cache
def transform(name: str) -> Transform:
    """A transform as its yaml has it, but for `SETTINGS`."""
    everything = composed("train", f"strategy/transforms=[{','.join(TRANSFORMS)}]", "paths.output_dir=.")
    settings = {**everything.strategy.transforms[name], **SETTINGS.get(name, {})}
    made: Transform = instantiate(settings, _convert_="all")
    return made


@cache
def rule_named(name: str) -> Aggregator:
    """A rule as its yaml has it."""
    settings = composed(f"strategy/aggregator/{name}").strategy.aggregator
    made: Aggregator = instantiate(settings, _convert_="all")
    return made


@cache
def dp_sgd() -> Any:
    """DP-SGD as its yaml has it."""
    return instantiate(
        composed("train", "trainer/private=dp_sgd", "paths.output_dir=.").trainer.private, _convert_="all"
    )


def setup(names: tuple[str, ...], *, rule: str = "mean", private: bool = False) -> Setup:
    """A federation of eight clients, all of whom take part, with these transforms in this order."""
    trainer = EagerTrainer(batch_size=4, **({"private": dp_sgd()} if private else {}))
    strategy = FedAvg(
        rounds=2,
        sampler=AllClients(),
        aggregator=rule_named(rule),
        transforms={name: transform(name) for name in names},
        server_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    )
    return Setup.of(Deep(), strategy, trainer, np.full(CLIENTS, 8), num_root_samples=4)


def refusal(names: tuple[str, ...], *, rule: str = "mean", private: bool = False) -> str | None:
    """Why they do not go together, as `flrl-train` says it; None if they do."""
    try:
        made = setup(names, rule=rule, private=private)
        made.check()
        mechanism_of(made)
    except ValueError as error:
        return str(error)
    return None


def pairs() -> dict[tuple[str, str], str | None]:
    """Each pair of transforms, the one that comes first at the client first, with its refusal."""
    return {(one, two): refusal((one, two)) for one in TRANSFORMS for two in TRANSFORMS if one != two}


def with_rules() -> dict[tuple[str, str], str | None]:
    """Each transform with each rule, with its refusal; rules that refuse this federation as it is are left out."""
    rules = [rule for rule in RULES if refusal((), rule=rule) is None]
    return {(name, rule): refusal((name,), rule=rule) for name in TRANSFORMS for rule in rules}


def with_dp_sgd() -> dict[tuple[str, str], str | None]:
    """Each transform with DP-SGD in the clients' training."""
    return {(name, "dp_sgd"): refusal((name,), private=True) for name in TRANSFORMS}


def page() -> str:
    """docs/composition.md."""
    reasons: dict[str, str] = {}
    transforms = _table("first", "then", pairs(), reasons)
    rules = _table("transform", "rules", with_rules(), reasons)
    private = _table("transform", "in training", with_dp_sgd(), reasons)
    numbered = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return _TEXT.format(transforms=transforms, rules=rules, private=private, reasons=numbered)


def _table(one: str, two: str, found: dict[tuple[str, str], str | None], reasons: dict[str, str]) -> str:
    """A row for each first part: what goes with it, and what does not, by the number of the reason."""
    lines = [f"| {one} | {two} | refused |", "|---|---|---|"]
    for first in dict.fromkeys(pair[0] for pair in found):
        own = {second: why for (name, second), why in found.items() if name == first}
        refused: dict[int, list[str]] = {}
        for second, why in own.items():
            if why is not None:
                general = _general(why, first, second)
                reasons.setdefault(general, "")
                refused.setdefault([*reasons].index(general) + 1, []).append(second)
        works = [second for second, why in own.items() if why is None]
        parts = [f"{', '.join(_short(names, [*own]))} ({number})" for number, names in sorted(refused.items())]
        lines.append(f"| `{first}` | {', '.join(_short(works, [*own])) or 'none'} | {'; '.join(parts)} |")
    return "\n".join(lines)


def _short(names: list[str], everything: list[str]) -> list[str]:
    """Names; said from the other side where few are missing."""
    missing = [name for name in everything if name not in names]
    if len(everything) > 4 and len(missing) <= 4:
        return ["all but " + ", ".join(f"`{name}`" for name in missing)] if missing else ["all"]
    return [f"`{name}`" for name in names]


def _general(why: str, *names: str) -> str:
    """A reason without the names of the two, so that pairs that are refused for one reason share it."""
    shown = [name for name in TRANSFORMS if name in names]
    for name in sorted(shown, key=len, reverse=True):
        why = re.sub(rf"\b{name}\b", "…", why)
    rules = "|".join(type(rule_named(name)).__name__ for name in RULES)
    return re.sub(rf"\b({rules})\b", "the rule", why)


_TEXT = """# What goes together

Made from what the parts themselves refuse, by `python -m tests.transforms.composition`; a test compares this page, and
`pytest -m mpi tests/transforms/test_composition.py` runs all that goes together on three backends. What is refused is
refused before the first round, with the reason. Transforms act on a client's update in the order of the list
`strategy/transforms=[first,then]`: what changes numbers freely, then clipping, then noise, then one compressor, or what
hides updates.

## Transforms

{transforms}

## Rules

{rules}

## DP-SGD in clients' training

{private}

## Reasons

{reasons}
"""


if __name__ == "__main__":
    PAGE.write_text(page())
