"""The numbers that a user's LightningModule logs while it trains or is evaluated, and how parts of them are joined."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric


@dataclass(frozen=True, slots=True)
class Logged:
    """All that a module logged over some batches, in a form that can be pickled and joined with that of other batches.

    Attributes:
        values: (value, weight) pairs, by name.
        reduce: the reduction of each name: mean, sum, min or max.
        states: by logged name, a torchmetrics object's path in the module and its counts as plain lists.
        computed: values of torchmetrics objects over all batches.
    """

    values: Mapping[str, Sequence[tuple[float, float]]]
    reduce: Mapping[str, str]
    states: Mapping[str, tuple[str, Mapping[str, Any]]]
    computed: Mapping[str, float]


class LogCollector:
    """Replaces `self.log` and collects what a module logs while it trains one client.

    Numbers are averaged over the whole local training, weighted by samples; torchmetrics objects have their value at
    the end of the last epoch.
    """

    def __init__(self) -> None:
        self.batch_size = 1
        """Number of samples of the current batch: the weight of logged numbers, unless `batch_size` is given."""
        self._values: dict[str, list[tuple[Tensor, float]]] = {}
        self._reduce: dict[str, str] = {}
        self._metrics: dict[str, Metric] = {}
        self._computed: dict[str, float] = {}
        self._losses: list[tuple[Tensor, float]] = []
        self.num_skipped = 0
        """Batches for which `training_step` returned nothing."""

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Replaces `LightningModule.log`; options other than `reduce_fx` and `batch_size` are ignored.

        Raises:
            ValueError: the value is not one number, or the reduction is not mean, sum, min or max.
        """
        if isinstance(value, Metric):
            self._metrics[name] = value
            return
        reduce = options.get("reduce_fx", "mean")
        reduce = reduce if isinstance(reduce, str) else getattr(reduce, "__name__", "")
        if reduce not in ("mean", "sum", "min", "max"):
            raise ValueError(f"self.log({name!r}): reduce_fx must be mean, sum, min or max")
        value = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
        if value.numel() != 1:
            raise ValueError(f"self.log({name!r}): the value must be one number, got shape {tuple(value.shape)}")
        self._reduce[name] = reduce
        weight = self.batch_size if options.get("batch_size") is None else options["batch_size"]
        self._values.setdefault(name, []).append((value.reshape(()), float(weight)))

    def log_dict(self, dictionary: Any, *args: Any, **options: Any) -> None:
        """Replaces `LightningModule.log_dict`; raises as `log` does."""
        for name, value in dictionary.items():
            self.log(name, value, **options)

    @property
    def num_losses(self) -> int:
        """Number of batches whose loss was added."""
        return len(self._losses)

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss that `training_step` returned for the current batch."""
        self._losses.append((loss.detach(), float(self.batch_size)))

    def end_epoch(self, *, reset: bool) -> None:
        """Compute the logged torchmetrics objects, and reset them for the next epoch if `reset`."""
        for name, metric in self._metrics.items():
            self._computed[name] = float(metric.compute())
            if reset:
                metric.reset()
        self._metrics.clear()

    def result(self) -> dict[str, float]:
        """All that was logged, by name; `train/loss` is the mean of the added losses, if there are any."""
        numbers = {name: reduced(self._reduce[name], _numbers(logged)) for name, logged in self._values.items()}
        if self._losses:
            numbers["train/loss"] = reduced("mean", _numbers(self._losses))
        return numbers | self._computed

    def logged(self, module: pl.LightningModule) -> Logged:
        """All that was logged, with the counts of torchmetrics objects since the last `end_epoch`.

        Raises:
            ValueError: a torchmetrics object is no attribute of the module, or keeps more than counts.
        """
        paths = {id(part): path for path, part in module.named_modules()}
        for name, metric in self._metrics.items():
            if id(metric) not in paths or not counts_only(metric):
                raise ValueError(f"self.log({name!r}): the {type(metric).__name__} must be an attribute of the module")
        return Logged(
            {name: _numbers(logged) for name, logged in self._values.items()},
            dict(self._reduce),
            {name: (paths[id(metric)], _lists(metric)) for name, metric in self._metrics.items()},
            dict(self._computed),
        )


def joined(parts: Sequence[Logged], module: nn.Module) -> dict[str, float]:
    """The values that a module logged over all batches, by name, from its logs over parts of them."""
    values: dict[str, list[tuple[float, float]]] = {}
    for part in parts:
        for name, logged in part.values.items():
            values.setdefault(name, []).extend(logged)
    reduce = {name: how for part in parts for name, how in part.reduce.items()}
    result = {name: reduced(reduce[name], logged) for name, logged in values.items()}
    for name, path in {name: path for part in parts for name, (path, _) in part.states.items()}.items():
        metric = module.get_submodule(path)
        assert isinstance(metric, Metric)
        metric.reset()
        for part in parts:
            if name in part.states:
                states = part.states[name][1].items()
                metric.merge_state({key: torch.tensor(value, device=metric.device) for key, value in states})
        with warnings.catch_warnings():  # it was updated in other processes
            warnings.filterwarnings("ignore", ".*was called before the ``update`` method", UserWarning)
            result[name] = float(metric.compute())
        metric.reset()
    return result | {name: value for part in parts for name, value in part.computed.items()}


def counts_only(metric: Metric) -> bool:
    """Whether a torchmetrics object keeps only counts, so that those of several parts can be joined exactly."""
    states = metric.metric_state.values()
    whole = all(isinstance(state, Tensor) and not state.is_floating_point() for state in states)
    return whole and metric.full_state_update is False and not metric.dist_sync_on_step


def _lists(metric: Metric) -> dict[str, Any]:
    return {key: state.tolist() for key, state in metric.metric_state.items() if isinstance(state, Tensor)}


def _numbers(logged: list[tuple[Tensor, float]]) -> list[tuple[float, float]]:
    values = [value for value, _ in logged]
    if any(value.device != values[0].device for value in values):  # a module may log a plain number now and then
        values = [value.cpu() for value in values]
    numbers = torch.stack(values).to(torch.float64).flatten().tolist()
    return list(zip(numbers, (weight for _, weight in logged), strict=True))


def reduced(reduce: str, logged: Sequence[tuple[float, float]]) -> float:
    """Reduce (value, weight) pairs to one number; sums are rounded once, so that the order does not matter."""
    values = [value for value, _ in logged]
    if reduce in ("min", "max"):
        return float(getattr(torch, reduce)(torch.tensor(values, dtype=torch.float64)))
    add = math.fsum if all(map(math.isfinite, values)) else sum
    if reduce == "sum":
        return float(add(values))
    return float(add(value * weight for value, weight in logged) / math.fsum(weight for _, weight in logged))
