"""Observations of small modules, without any run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flrl.attacks import Inputs, Local, Observation
from flrl.layout import ParameterLayout

FEDSGD = Local(only_gradient=True, lr=None, batch_size=64, epochs=1, steps=None, shuffle=False)
UNIT = (torch.tensor(0.0), torch.tensor(1.0))


def observation(
    net: nn.Module,
    samples: tuple[Tensor, Tensor],
    *,
    local: Local = FEDSGD,
    personal: Sequence[str] = (),
    num_classes: int = 10,
    **others: Any,
) -> Observation:
    """What is seen of a client that sends minus the gradient of its mean cross-entropy."""
    layout = ParameterLayout(net, personal)
    loss = nn.functional.cross_entropy(net(samples[0]), samples[1])
    parameters = dict(net.named_parameters())
    names = [entry.name for entry in layout.entries if entry.kind == "trainable"]
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    update = torch.zeros(layout.size, dtype=torch.float64)
    update[: layout.num_trainable] = -torch.cat([gradient.flatten() for gradient in gradients]).double()
    return Observation(
        round=1,
        clients=(0,),
        module=net,  # type: ignore[arg-type]
        layout=layout,
        sent=layout.flatten(net),
        update=update,
        num_samples=len(samples[0]),
        local=local,
        inputs=Inputs(tuple(samples[0].shape[1:]), samples[0].dtype, *UNIT, num_classes),
        seed=0,
        **others,
    )
