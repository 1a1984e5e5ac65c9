"""What a client sends back that was sent a tampered model, without any run."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flrl.attacks import Inputs, Local, Observation
from flrl.layout import ParameterLayout
from flrl.models import Classifier

Samples = tuple[Tensor, Tensor]
PUBLIC = range(1000, 1797)


def digits(places: Sequence[int] | Tensor, size: int = 28) -> Samples:
    """Handwritten digits in [0, 1] in an order drawn once, `[n, 1, size, size]`, and their classes."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))[list(places)].numpy()
    images = torch.from_numpy(data.images[order]).float()[:, None] / 16
    images = nn.functional.interpolate(images, size=(size, size), mode="bilinear").clamp(0, 1)
    return images, torch.from_numpy(data.target[order]).long()


def classifier(net: nn.Module) -> Classifier:
    return Classifier(net=net, num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.1))


def observed(
    module: Classifier, sent: Tensor, samples: Sequence[Samples], *, lr: float = 0.1, epochs: int = 0, size: int = 16
) -> Observation:
    """The mean of what clients with these samples send back: gradients, or after some epochs of SGD."""
    layout = ParameterLayout(module)
    updates = []
    for inputs, classes in samples:
        local = copy.deepcopy(module)
        nn.utils.vector_to_parameters(sent.clone(), local.parameters())
        for _ in range(epochs):
            for batch in zip(inputs.split(size), classes.split(size), strict=True):
                gradients = torch.autograd.grad(local.training_step(batch, 0), list(local.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(local.parameters(), gradients, strict=True):
                        parameter -= lr * gradient
        if not epochs:
            gradients = torch.autograd.grad(local.training_step((inputs, classes), 0), list(local.parameters()))
            updates.append(-torch.cat([gradient.flatten() for gradient in gradients]).double())
        else:
            updates.append(layout.flatten(local).double() - sent.double())
    sizes = torch.tensor([len(inputs) for inputs, _ in samples]).double()
    attacked = copy.deepcopy(module)
    nn.utils.vector_to_parameters(sent.clone(), attacked.parameters())
    return Observation(
        round=1,
        clients=range(len(samples)),
        module=attacked,
        layout=layout,
        sent=sent,
        update=(torch.stack(updates) * sizes[:, None]).sum(0) / sizes.sum(),
        num_samples=int(sizes.sum()),
        local=Local(not epochs, lr if epochs else None, size, epochs or 1, None, shuffle=False),
        inputs=Inputs(tuple(samples[0][0].shape[1:]), torch.float32, torch.tensor(0.0), torch.tensor(1.0), 10),
        seed=0,
    )


def quiet(share: float, text: str) -> None:
    assert 0 <= share <= 1


def errors(found: Tensor | None, inputs: Tensor) -> Tensor:
    """For each true sample the mean squared error of the nearest one that was found, `[n]`."""
    if found is None or not len(found):
        return torch.full((len(inputs),), torch.inf)
    distances = torch.cdist(
        inputs.flatten(1).double(), found.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances.min(dim=1).values.square() / inputs[0].numel()
