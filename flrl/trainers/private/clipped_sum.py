"""Per-sample gradients of a module's own training step, clipped and summed."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils import _pytree as pytree

from flrl.layout import ParameterLayout
from flrl.lightning.local_step import StepModule
from flrl.lightning.steps import loss_of, replaced
from flrl.trainers.private.dp_sgd import DPSGD
from flrl.trainers.private.lstm import plain_lstms
from flrl.trainers.steps.capturing import NotCapturableError

_MARGIN = 1e-6
"""Added to norms before they divide, as in `torch.nn.utils.clip_grad_norm_`: a clipped norm is below the bound."""


class ClippedSum:
    """The sum of a batch's per-sample gradients, each clipped: a function of tensors alone, which can be recorded.

    `torch.func.vmap` takes the module's `training_step` on each sample as a batch of one, so that nothing of one sample
    can get into another's gradient, whatever the step does.

    Args:
        module: the user's module.
        layout: the layout of its parameters.
        places: the indices in `layout.trained` of the parameters that are trained.
        private: gives norm and clipping.
        batch: any batch, for the structure of all.
        context: entered around the step: autocast, or nothing.

    Attributes:
        logged: name and reduction of each number that the step logs, once it was called.
        batch_idx: the argument of `training_step`.
        leaves_out: whether samples whose gradients are not finite count as zero, which costs a further pass.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        layout: ParameterLayout,
        places: Sequence[int],
        private: DPSGD,
        batch: Any,
        context: Callable[[], Any],
    ) -> None:
        self.module, self.private, self.context = module, private, context
        self.names = [f"module.{layout.trained[place].name}" for place in places]
        self.others = [f"module.{e.name}" for place, e in enumerate(layout.trained) if place not in set(places)]
        self.buffers = [f"module.{name}" for name, _ in module.named_buffers()]
        self.spec = pytree.tree_flatten(batch)[1]
        self.logged: list[tuple[str, str]] = []
        self.batch_idx: Any = 0
        self.leaves_out = False
        self._values: list[Tensor] = []

    def __call__(self, tensors: Sequence[Tensor], leaves: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
        """The loss and the logged numbers of each sample, `[rows]` each, and the sums of clipped gradients.

        Args:
            tensors: the trained parameters, the other parameters, and the buffers, in the order of the attributes.
            leaves: the batch's tensors, `[rows, ...]`.
            weights: 1 for a sample, 0 for a row that fills up the batch, `[rows]`.
        """
        count = len(self.names)
        trained, rest = list(tensors[:count]), list(tensors[count:])

        def loss(trained: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, Any]:
            value = self._loss([*trained, *rest], leaves)
            return value, (value.detach(), *self._values)

        one = torch.func.grad(loss, has_aux=True)
        gradients, values = torch.vmap(one, in_dims=(None, 0), randomness="different")(trained, list(leaves))
        return (*values, *_summed(gradients, weights, self.private, leaves_out=self.leaves_out))

    def _loss(self, tensors: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
        self.logged, self._values = [], []
        names = [*self.names, *self.others, *self.buffers]
        named = dict(zip(names, tensors, strict=True))
        batch = pytree.tree_unflatten([leaf.unsqueeze(0) for leaf in leaves], self.spec)
        logging = replaced(self.module, log=self._log, log_dict=self._log_dict)
        with logging, self.context(), plain_lstms(self.module):
            loss = loss_of(functional_call(_Kept(self.module), named, (batch, self.batch_idx)))
        if loss is None:
            raise ValueError("trainer.private: training_step returned None; every sample needs a loss")
        if loss.numel() != 1:
            raise ValueError(f"trainer.private: training_step returned {loss.numel()} losses for one sample")
        return loss.reshape(())

    def _log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        reduce = options.get("reduce_fx", "mean")
        reduce = reduce if isinstance(reduce, str) else getattr(reduce, "__name__", "")
        if not isinstance(value, Tensor | float | int):
            raise ValueError(f"trainer.private: training_step logs {type(value).__name__} as {name!r}: log numbers")
        value = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
        if value.numel() != 1:
            raise ValueError(f"trainer.private: training_step logs {value.numel()} numbers as {name!r}")
        self.logged.append((name, reduce))
        self._values.append(value.reshape(()))

    def _log_dict(self, dictionary: Any, *args: Any, **options: Any) -> None:
        for name, value in dictionary.items():
            self._log(name, value, **options)


def _summed(gradients: Sequence[Tensor], weights: Tensor, private: DPSGD, *, leaves_out: bool) -> list[Tensor]:
    """The weighted sums of per-sample gradients, `[rows, ...]` each, that are clipped before."""
    rows = len(weights)
    flat = [gradient.reshape(rows, -1) for gradient in gradients]
    norms = torch.stack([part.norm(dim=1) for part in flat])
    if leaves_out:
        finite = norms.isfinite().all(dim=0)
        norms = torch.where(finite, norms, 0.0)
        flat = [torch.where(finite[:, None], part, 0.0) for part in flat]
    if private.clipping == "per_layer":
        factors = _factors(norms, private.max_norm / math.sqrt(len(flat))) * weights
    else:
        factors = (_factors(norms.norm(dim=0), private.max_norm) * weights).expand(len(flat), rows)
    return [factor @ part for factor, part in zip(factors, flat, strict=True)]


def _factors(norms: Tensor, limit: float) -> Tensor:
    return torch.ones_like(norms) if limit == math.inf else (limit / (norms + _MARGIN)).clamp(max=1.0)


class _Kept(StepModule):
    """Refuses a step that replaces buffers."""

    def forward(self, batch: Any, batch_idx: int = 0) -> Any:
        given = dict(self.module.named_buffers())
        output = super().forward(batch, batch_idx)
        replaced = [name for name, buffer in self.module.named_buffers() if given.get(name) is not buffer]
        if replaced:
            raise NotCapturableError(f"training_step changes the buffer {replaced[0]!r}, which is sent without noise")
        return output
