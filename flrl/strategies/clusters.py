"""Several models on one server, each with its part of the optimizer's state: what clustered strategies share.

The first cluster's model is `ServerState.vector`, and so what `test/...` is about; the others are rows of the variable
`clusters`. Their optimizers' states have names of their own.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flrl.trainers import LocalProblem
from flrl.types import ServerState, Tensors

CLUSTERS = "clusters"
"""The name of the variable with the models of all clusters but the first, `[clusters - 1, layout.size]`."""
_PREFIX = "cluster/"


def parts_of(state: ServerState) -> list[ServerState]:
    """The state of each cluster as if it were alone."""
    vectors = [state.vector, *state.variables.get(CLUSTERS, ())]
    own = [_own(state.optimizer, index) for index in range(len(vectors))]
    return [replace(state, vector=v, optimizer=optimizer) for v, optimizer in zip(vectors, own, strict=True)]


def joined(state: ServerState, parts: Sequence[ServerState]) -> ServerState:
    """The state with the models and optimizers' states of all clusters."""
    optimizer = dict(parts[0].optimizer)
    for index, part in enumerate(parts[1:], start=1):
        optimizer |= {f"{_PREFIX}{index}/{name}": tensor for name, tensor in part.optimizer.items()}
    variables = dict(state.variables)
    if len(parts) > 1:
        variables[CLUSTERS] = torch.stack([part.vector for part in parts[1:]])
    return replace(state, vector=parts[0].vector, optimizer=optimizer, variables=variables)


def models_of(problem: LocalProblem) -> list[Tensor]:
    """The clusters' models as a client of a round has them, local vectors `[layout.local_size]`."""
    others = problem.broadcast.variables.get(CLUSTERS, ())
    kept = problem.start[problem.model.layout.size :]
    return [problem.start, *(torch.cat([other, kept]) for other in others)]


def _own(optimizer: Tensors, index: int) -> dict[str, Tensor]:
    if not index:
        return {name: tensor for name, tensor in optimizer.items() if not name.startswith(_PREFIX)}
    prefix = f"{_PREFIX}{index}/"
    return {name.removeprefix(prefix): tensor for name, tensor in optimizer.items() if name.startswith(prefix)}
