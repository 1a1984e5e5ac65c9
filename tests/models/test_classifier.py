"""The classifier: its loss and accuracy by hand, and the forms Lightning knows."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.evaluation import Evaluator
from flrl.models import Classifier

SGD = partial(torch.optim.SGD, lr=0.1)
SCORES = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
CLASSES = torch.tensor([2, 0, 1, 1])
# Negative log-likelihoods of the log-softmax, sample by sample.
LOSSES = [
    math.log(math.exp(1) + math.exp(2) + math.exp(3)) - 3,
    math.log(3),
    math.log(math.exp(5) + 2),
    math.log(math.e + 2) - 1,
]
ACCURACY = 0.75  # equal scores count for the first class


def classifier(net: nn.Module | None = None, **options: Any) -> Classifier:
    return Classifier(net=net or nn.Identity(), num_classes=3, **({"optimizer": SGD} | options))


def logged(module: Classifier, split: str) -> dict[str, float]:
    """What one step on the four samples logs."""
    values: dict[str, Any] = {}
    module.log = lambda name, value, **options: values.update({name: (value, options)})  # type: ignore[method-assign]
    getattr(module, "validation_step" if split == "val" else "test_step")((SCORES, CLASSES), 0)
    assert all(options["on_epoch"] for _, options in values.values())
    return {name: float(value if isinstance(value, Tensor) else value.compute()) for name, (value, _) in values.items()}


def test_the_loss_is_the_negative_log_likelihood_of_the_log_softmax() -> None:
    loss = classifier().training_step((SCORES, CLASSES), 0)
    assert float(loss) == pytest.approx(sum(LOSSES) / 4, rel=1e-6)
    for sample in range(4):
        one = classifier().training_step((SCORES[sample : sample + 1], CLASSES[sample : sample + 1]), 0)
        assert float(one) == pytest.approx(LOSSES[sample], rel=1e-5)


def test_its_gradient_is_softmax_minus_one_hot() -> None:
    scores = SCORES.clone().requires_grad_()
    classifier().training_step((scores, CLASSES), 0).backward()
    expected = (SCORES.softmax(1) - nn.functional.one_hot(CLASSES, 3)) / 4
    assert torch.allclose(scores.grad, expected, atol=1e-7)


@pytest.mark.parametrize("split", ["val", "test"])
def test_steps_log_loss_and_accuracy(split: str) -> None:
    assert logged(classifier(), split) == {
        f"{split}/loss": pytest.approx(sum(LOSSES) / 4, rel=1e-6),
        f"{split}/accuracy": ACCURACY,
    }


def test_another_loss_takes_its_place() -> None:
    def hits(scores: Tensor, classes: Tensor) -> Tensor:
        return (scores.argmax(1) == classes).float().sum()

    module = classifier(loss=hits)
    assert float(module.training_step((SCORES, CLASSES), 0)) == 3.0
    assert logged(module, "test") == {"test/loss": 3.0, "test/accuracy": ACCURACY}


def test_smoothed_labels_are_a_loss_like_any() -> None:
    """With smoothing e the loss is (1 - e) times that of the class plus e times the mean over all classes."""
    module = classifier(loss=nn.CrossEntropyLoss(label_smoothing=0.3))
    over_all = -SCORES.log_softmax(1).mean(1)
    expected = 0.7 * sum(LOSSES) / 4 + 0.3 * float(over_all.mean())
    assert float(module.training_step((SCORES, CLASSES), 0)) == pytest.approx(expected, rel=1e-6)
    assert logged(module, "test") == {"test/loss": pytest.approx(expected, rel=1e-6), "test/accuracy": ACCURACY}


def test_metrics_over_all_batches() -> None:
    model = BoundModel(classifier(nn.Linear(3, 3)))
    model.load(torch.cat([torch.eye(3).flatten(), torch.zeros(3)]))
    source = TensorSource(SCORES, CLASSES)
    for _ in range(2):
        assert Evaluator(batch_size=3).run(model, source, np.arange(4)) == {
            "test/loss": pytest.approx(sum(LOSSES) / 4, rel=1e-6),
            "test/accuracy": ACCURACY,
        }
    assert Evaluator().run(model, source, np.array([2, 3])) == {
        "test/loss": pytest.approx((LOSSES[2] + LOSSES[3]) / 2, rel=1e-6),
        "test/accuracy": 0.5,
    }


def test_forward_gives_the_nets_scores() -> None:
    assert torch.equal(classifier()(SCORES), SCORES)


def test_without_a_scheduler_there_is_one_optimizer_of_the_trainable_parameters() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    net[0].requires_grad_(False)
    optimizer = classifier(net, optimizer=partial(torch.optim.SGD, lr=0.25)).configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert [id(parameter) for parameter in optimizer.param_groups[0]["params"]] == [
        id(net[1].weight),
        id(net[1].bias),
    ]


def test_with_a_scheduler_the_form_is_a_pair_of_lists() -> None:
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    optimizers, schedulers = classifier(nn.Linear(3, 3), scheduler=scheduler).configure_optimizers()
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.SGD]
    assert [type(one) for one in schedulers] == [torch.optim.lr_scheduler.StepLR]
    assert schedulers[0].optimizer is optimizers[0]


@pytest.mark.filterwarnings(
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:GPU available but not used",
)
def test_lightning_trains_and_tests_it(tmp_path: Path) -> None:
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    net = nn.Linear(3, 3)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    module = classifier(net, scheduler=scheduler)
    loader = DataLoader(TensorDataset(SCORES, CLASSES), batch_size=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, loader, loader)
    # From zero every class has a third: the bias moves against the mean of softmax minus one-hot.
    shares = torch.tensor([1 / 3 - 1 / 4, 1 / 3 - 2 / 4, 1 / 3 - 1 / 4])
    assert torch.allclose(net.bias, -0.1 * shares, atol=1e-7)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
    (found,) = trainer.test(module, loader, verbose=False)
    ours = Evaluator(batch_size=3).run(BoundModel(module), TensorSource(SCORES, CLASSES), np.arange(4))
    assert found == pytest.approx(ours, rel=1e-6)
