"""Reading a module: what it logs becomes numbers, its steps are called with what they take, its attributes stay."""

import math
from typing import Any

import pytest
import torch
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from flrl.lightning.logs import LogCollector, counts_only, joined, reduced
from flrl.lightning.steps import replaced, step_caller
from tests.toys import Linear


def test_logged_numbers_are_reduced_by_samples() -> None:
    log = LogCollector()
    for size, value in ((10, 1.0), (30, 3.0), (20, -2.0)):
        log.batch_size = size
        log.log("mean", value)
        log.log("own size", value, batch_size=1)
        log.log_dict({"sum": torch.tensor([value])}, reduce_fx="sum")
        log.log("least", value, reduce_fx=min)
        log.log("most", value, reduce_fx=torch.max)
        log.add_loss(torch.tensor(value / 2))
    assert log.result() == {
        "mean": 1.0,  # (10 + 90 - 40) / 60
        "own size": pytest.approx(2 / 3),
        "sum": 2.0,
        "least": -2.0,
        "most": 3.0,
        "train/loss": 0.5,
    }


def test_sums_are_rounded_once_and_what_is_not_finite_stays_so() -> None:
    assert reduced("sum", [(1e16, 1.0), (1.0, 1.0), (-1e16, 1.0)]) == 1.0
    assert reduced("mean", [(1.0, 1.0), (math.inf, 1.0)]) == math.inf
    assert math.isnan(reduced("mean", [(-math.inf, 1.0), (math.inf, 1.0)]))
    assert reduced("min", [(3.0, 1.0), (2.0, 5.0)]) == 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": 1.0, "reduce_fx": "median"}, r"self\.log\('a'\): reduce_fx must be mean, sum, min or max"),
        ({"value": torch.zeros(2)}, r"self\.log\('a'\): the value must be one number, got shape \(2,\)"),
    ],
)
def test_what_is_no_number_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogCollector().log("a", **options)


class Measured(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3, average="micro")


def test_counts_of_several_parts_are_joined() -> None:
    """Two of three and none of one right: half of four, which is no mean of the parts' shares."""
    module, parts = Measured(), []
    for guesses, truth in (([0, 1, 2], [0, 1, 1]), ([2], [0])):
        log = LogCollector()
        module.accuracy.update(torch.tensor(guesses), torch.tensor(truth))
        log.log("accuracy", module.accuracy)
        parts.append(log.logged(module))
        module.accuracy.reset()
    assert joined(parts, module) == {"accuracy": 0.5}
    assert joined(parts[::-1], module) == {"accuracy": 0.5}
    assert counts_only(module.accuracy)
    assert not counts_only(SumMetric())


def test_a_metric_that_is_not_the_modules_is_named() -> None:
    log = LogCollector()
    log.log("total", SumMetric())
    with pytest.raises(ValueError, match=r"self\.log\('total'\): the SumMetric must be an attribute of the module"):
        log.logged(Linear())


def test_steps_are_called_with_what_they_take() -> None:
    assert step_caller(lambda batch: ("one", batch))("b", 3) == ("one", "b")
    assert step_caller(lambda batch, batch_idx: (batch, batch_idx))("b", 3) == ("b", 3)
    with pytest.raises(ValueError, match="steps that take `dataloader_iter` are not supported"):
        step_caller(lambda dataloader_iter: None)


def test_replaced_attributes_are_put_back() -> None:
    module = Linear()
    module.log = own = lambda name, value: None  # type: ignore[method-assign]
    with replaced(module, log="other", log_dict="other"):
        assert (module.log, module.log_dict) == ("other", "other")
    assert module.log is own
    assert "log_dict" not in vars(module)
