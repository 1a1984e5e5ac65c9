"""An update, and a context, that tests of transforms share."""

import torch
from torch import Tensor, nn

from flrl.layout import ParameterLayout
from flrl.seeding import seed_for
from flrl.transforms import Context
from flrl.types import ClientUpdate

LAYOUT = ParameterLayout(nn.BatchNorm1d(1))  # weight, bias, running_mean, running_var


def context(name: str = "noise", *, round: int = 1, client_id: int = -1, layout: ParameterLayout = LAYOUT) -> Context:
    generator = torch.Generator().manual_seed(seed_for(0, round, client_id, f"transforms/{name}"))
    return Context(round, 0, layout, (3,), 7.0, generator)


def update(*values: float, **vectors: Tensor) -> ClientUpdate:
    return ClientUpdate(
        client_id=3,
        weight=7.0,
        vectors={"update": torch.tensor(values, dtype=torch.float64), **vectors},
        metrics={"train/loss": 0.5},
        num_steps=11,
        payload={"update": 8, "control": 4},
        memory={"velocity": torch.ones(2)},
    )
