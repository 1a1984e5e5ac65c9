"""Canaries of a finished run: which were in its training data, and how much its released models seem to know of them.

A sample is scored by the loss that it has lost: its cross-entropy under the first model less its mean over the released
ones. A client is scored by the inner product of its direction with the difference of the last and the first model: the
sum of all rounds' inner products, as the directions stay the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flrl.adversaries import ClientCanaries
from flrl.adversaries.client_canaries import direction, is_in
from flrl.attacks.samples import gathered
from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.evaluate_run import check_partition, load_saved
from flrl.layout import ParameterLayout
from flrl.lightning.hooks import overridden
from flrl.lightning.modes import evaluating
from flrl.recipe import Recipe
from flrl.rounds import initial_state
from flrl.runs.integrity import check_files

Unit = Literal["client", "sample"]
_BATCH = 512
SEES: Mapping[Unit, str] = {
    "client": "anyone who is sent the first and the last model: knows each canary's direction, and nothing of others",
    "sample": "anyone who is sent the first model and the released ones: has the canaries, and nothing of others",
}
"""What the observer of a canary is assumed to see."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The canaries of a run.

    Attributes:
        unit: what a canary is.
        ids: client ids, or indices into the training samples, int64 `[m]`, ascending.
        included: which were in the training data, bool `[m]`.
        scores: higher for those that seem to be in, float64 `[m]`.
    """

    unit: Unit
    ids: np.ndarray
    included: np.ndarray
    scores: np.ndarray


def canaries_of(
    folder: Path, config: Mapping[str, Any], released: Callable[[], Sequence[Tensor]] | None = None
) -> list[Scored]:
    """The canaries of a finished run, scored; empty if it has none.

    Args:
        folder: the run's folder.
        config: its configuration.
        released: gives the models that samples are scored by, `[layout.size]` each; None for the last one alone.

    Raises:
        ValueError: there is no model to look into, or it gives samples no class scores.
        FileNotFoundError: a file of the run is missing.
    """
    recipe = Recipe(config)
    data, adversary, strategy = recipe.data(), recipe.adversary(), recipe.strategy()
    sought = data.splits.canaries
    clients = adversary.malicious(data.num_clients, recipe.seeds.run) if isinstance(adversary, ClientCanaries) else ()
    if sought is None and not clients:
        return []
    if not strategy.sends_model:
        raise ValueError(f"clients of {type(strategy).__name__} exchange no model")
    check_partition(folder, data)
    model, _ = recipe.models(strategy, threads=1, device="cpu")
    check_files(folder, model.layout)
    start = initial_state(strategy, model.vector.detach().clone(), model.layout, recipe.seeds.run)
    first, last = start.vector, _last(model, folder)
    found = []
    if clients:
        found.append(_of_clients(clients, recipe.seeds.run, model.layout, last - first))
    if sought is not None:
        samples = gathered(data.splits.train, sought.indices)
        models = [last] if released is None else released()
        scores = sample_scores(model.module, model.layout, first, models, samples)
        found.append(Scored("sample", sought.indices, sought.included, scores))
    return found


def sample_scores(
    module: nn.Module, layout: ParameterLayout, first: Tensor, models: Sequence[Tensor], samples: TensorSource
) -> np.ndarray:
    """The loss that each sample has lost from the first model to the mean of others, float64 `[samples]`.

    Args:
        module: gives class scores.
        layout: of the vectors.
        first: the first model, `[layout.size]`.
        models: those that are compared with it, one or more.
        samples: inputs as the module is given them, and classes.

    Raises:
        ValueError: the module has no `forward`, samples have no classes, or clients keep parts of the model.
    """
    if not overridden(module, "forward"):
        raise ValueError(f"needs class scores, and {type(module).__name__} has no forward")
    if samples.labels is None:
        raise ValueError("needs samples with classes")
    if layout.personal:
        raise ValueError("clients keep parts of the model to themselves, so what it says of samples is not known")
    later = sum(_losses(module, layout, vector, samples) for vector in models) / len(models)
    found: np.ndarray = (_losses(module, layout, first, samples) - later).numpy()
    return found


def _losses(module: nn.Module, layout: ParameterLayout, vector: Tensor, samples: TensorSource) -> Tensor:
    tensors = layout.unflatten(vector)
    with torch.no_grad(), evaluating(module):
        parts = [functional_call(module, tensors, (x,)) for x in torch.split(samples.inputs, _BATCH)]
    return nn.functional.cross_entropy(torch.cat(parts).double(), samples.targets, reduction="none")


def _of_clients(clients: Sequence[int], seed: int, layout: ParameterLayout, moved: Tensor) -> Scored:
    size = layout.num_trainable
    change = moved[:size].double().numpy()
    scores = np.array([(direction(seed, client, size) * change).sum() for client in clients])
    included = np.array([is_in(seed, client) for client in clients])
    return Scored("client", np.array(clients, np.int64), included, scores)


def _last(model: BoundModel, folder: Path) -> Tensor:
    load_saved(model, folder, None)
    return model.vector.detach().clone()
