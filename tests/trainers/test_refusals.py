"""What an engine cannot honour it refuses by name, before the first round."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from flrl.lightning.hooks import overridden
from flrl.lightning.optimizers import parse_optimizers, scale_learning_rates
from flrl.lightning.stand_in import TrainerStandIn
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer
from flrl.trainers.private import DPSGD
from tests.toys import Linear, setup_of


class Manual(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class OwnBackward(Linear):
    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        loss.backward()


class OwnStep(OwnBackward):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


class Newton(Linear):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


class TwoOptimizers(Linear):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.Adam(self.parameters())]


class NoOptimizer(Linear):
    def configure_optimizers(self) -> Any:
        return None


class NegativeRate(Linear):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=-1.0)


class Plateau(Linear):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)]


class Idle(pl.LightningModule):
    pass


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Manual, r"Manual uses manual optimization \(automatic_optimization=False\)"),
        (OwnBackward, "trainer=eager does not call backward, which OwnBackward overrides: use trainer=lightning"),
        (OwnStep, "does not call backward, optimizer_step, which OwnStep overrides"),
        (Newton, "LBFGS needs: use trainer=lightning"),
        (TwoOptimizers, r"must return one torch optimizer, got \['SGD', 'Adam'\]"),
        (NoOptimizer, r"must return one torch optimizer, got \['NoneType'\]"),
        (NegativeRate, "Invalid learning rate: -1.0"),
        (Plateau, "ReduceLROnPlateau follows a validation metric"),
        (Idle, "Idle has no training_step"),
    ],
)
def test_eager_refuses(module: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EagerTrainer().check(setup_of(module()))


def test_private_engines_are_refused_by_their_own_names_without_advice_that_is_refused_next() -> None:
    private = DPSGD(max_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match=r"^trainer=traced does not call backward, .*: no engine that does"):
        TracedTrainer(private=private).check(setup_of(OwnBackward()))
    with pytest.raises(ValueError, match=r"^trainer=eager does not pass closures, .*: no engine that does"):
        EagerTrainer(private=private).check(setup_of(Newton()))


def test_lightning_honours_what_eager_cannot() -> None:
    for module in (OwnBackward(), OwnStep(), Newton()):
        LightningTrainer().check(setup_of(module))
    with pytest.raises(ValueError, match="manual optimization"):
        LightningTrainer().check(setup_of(Manual()))


def test_overridden_knows_the_modules_own_hooks() -> None:
    assert overridden(OwnBackward(), "backward")
    assert not overridden(Linear(), "backward")
    assert not overridden(Linear(), "no_such_hook")


def test_the_stand_in_refuses_what_only_a_real_trainer_has() -> None:
    stand_in = TrainerStandIn(2, 5)
    assert (stand_in.estimated_stepping_batches, stand_in.max_epochs) == (10, 2)
    with pytest.raises(RuntimeError, match=r"trainer=eager has no Trainer\.strategy: use trainer=lightning"):
        _ = stand_in.strategy


@pytest.mark.parametrize("form", ["optimizer", "list", "pair", "dict", "dict of dict", "list of dict"])
def test_all_forms_of_configure_optimizers(form: str) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    full = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 3}}
    forms = {
        "optimizer": optimizer,
        "list": [optimizer],
        "pair": ([optimizer], [scheduler]),
        "dict": {"optimizer": optimizer, "lr_scheduler": scheduler},
        "dict of dict": full,
        "list of dict": [full],
    }
    found, steps = parse_optimizers(forms[form])
    assert found is optimizer
    expected = {"optimizer": [], "list": []}.get(form, [("step", 3) if "of dict" in form else ("epoch", 1)])
    assert [(step.interval, step.frequency) for step in steps] == expected


def test_scaling_reaches_nested_schedulers() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    parts = [
        torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5, 1),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
    ]
    sequence = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[1])
    _, steps = parse_optimizers(([optimizer], [sequence]))
    before = optimizer.param_groups[0]["lr"]
    scale_learning_rates(optimizer, steps, 0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(before / 10)
    assert parts[1].base_lrs == [pytest.approx(0.02)]
