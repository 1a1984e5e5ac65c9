"""Gradients between backward pass and optimizer step: a strategy's `adjust_gradient`, and frozen parameters."""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.trainers.problem import ClientHooks, LocalProblem
from flrl.types import Tensors

_checked: "weakref.WeakKeyDictionary[ClientHooks, set[tuple[str, ...]]]" = weakref.WeakKeyDictionary()
"""The strategies whose `adjust_gradient` has been checked, with the names of the values."""


def adjust_gradients(problem: LocalProblem, hooks: ClientHooks) -> None:
    """Call `adjust_gradient` on the model's gradients as one vector `[layout.num_trainable]`, and set the result.

    Raises:
        ValueError: `adjust_gradient` is not elementwise.
    """
    layout = problem.model.layout
    parameters = problem.model.trainable()[: layout.num_parameters]
    gradient = torch.cat([_gradient_of(parameter).reshape(-1) for parameter in parameters])
    live = problem.model.read()[: layout.num_trainable]
    check_elementwise(hooks, gradient, live, problem.values)
    hooks.adjust_gradient(gradient, live, problem.values)
    for parameter, part in zip(parameters, torch.split(gradient, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def drop_frozen(problem: LocalProblem) -> None:
    """Set to None the gradients of parameters that are not in `problem.trainable`: optimizers then skip them."""
    for place in frozen(problem.model.layout, problem.trainable):
        problem.model.trainable()[place].grad = None


def frozen(layout: ParameterLayout, trainable: frozenset[str] | None) -> list[int]:
    """The indices in `layout.trained` of parameters that are not in `trainable`; none if that is None.

    Raises:
        ValueError: a name is not that of a trainable parameter.
    """
    if trainable is None:
        return []
    names = [entry.name for entry in layout.trained]
    unknown = sorted(trainable - set(names))
    if unknown:
        raise ValueError(f"LocalProblem.trainable: {unknown[0]!r} is no trainable parameter of the model")
    return [place for place, name in enumerate(names) if name not in trainable]


def values_of_batch(problems: Sequence[LocalProblem]) -> dict[str, Tensor]:
    """The clients' `LocalProblem.values` with a first dimension for the clients, of length 1 where all share a tensor.

    Raises:
        ValueError: the clients' values differ in their names.
    """
    names = problems[0].values.keys()
    if any(problem.values.keys() != names for problem in problems):
        raise ValueError("clients of one batch have values of other names: LocalProblem.values must name the same")
    stacked = {}
    for name in names:
        tensors = [problem.values[name] for problem in problems]
        same = all(tensor is tensors[0] for tensor in tensors)
        stacked[name] = tensors[0].unsqueeze(0) if same else torch.stack(tensors)
    return stacked


def by_row(value: Tensor) -> Tensor:
    """A value of several clients as `adjust_gradient` is given it: numbers, `[clients]`, as `[clients, 1]`."""
    return value.unsqueeze(1) if value.ndim == 1 else value


def check_elementwise(hooks: ClientHooks, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
    """Raise ValueError unless `adjust_gradient` is elementwise.

    Each strategy is checked once per process: with every second number of gradient and parameters changed, the others
    must have the same result, and so must two clients at once.

    Args:
        hooks: the strategy.
        gradient: the gradient of one client, `[d]`.
        parameters: its parameters, `[d]`.
        values: its `LocalProblem.values`.
    """
    if tuple(values) in _checked.setdefault(hooks, set()):
        return
    kept = torch.arange(len(gradient), device=gradient.device) % 2 == 0
    first, second = (torch.where(kept, tensor, tensor + 1) for tensor in (gradient, parameters))
    alone = gradient.clone()
    if hooks.adjust_gradient(alone, parameters, values) is not None:  # type: ignore[func-returns-value]
        raise ValueError(
            f"strategy: {type(hooks).__name__}.adjust_gradient returns something: it must change the gradient in place"
        )
    hooks.adjust_gradient(first, second, values)
    both = torch.stack([gradient, gradient])
    expanded = {name: by_row(value.unsqueeze(0)) for name, value in values.items()}
    hooks.adjust_gradient(both, torch.stack([parameters, parameters]), expanded)
    close = [torch.allclose(first[kept], alone[kept], rtol=1e-4, atol=1e-6, equal_nan=True)]
    close += [torch.allclose(row, alone, rtol=1e-4, atol=1e-6, equal_nan=True) for row in both]
    if not all(close):
        raise ValueError(
            f"strategy: {type(hooks).__name__}.adjust_gradient is not elementwise: each number of the gradient may "
            "depend on that number, its parameter and its values alone, for [d] as for [clients, d]"
        )
    _checked[hooks].add(tuple(values))


def _gradient_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
