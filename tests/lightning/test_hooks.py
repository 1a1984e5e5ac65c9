"""Overridden hooks are found by comparing functions: classes in Lightning's own package override like others."""

import pytest
import pytorch_lightning as pl
from pytorch_lightning.demos import boring_classes, lstm, transformer

from flrl.data import from_datamodule
from flrl.lightning.hooks import overridden


class Ending(boring_classes.BoringModel):
    def on_train_end(self) -> None:
        pass


class Inheriting(Ending):
    pass


@pytest.mark.parametrize(
    ("kind", "hooks"),
    [
        (pl.LightningModule, set()),
        (boring_classes.BoringModel, {"training_step", "test_step", "validation_step", "configure_optimizers"}),
        (boring_classes.DemoModel, {"training_step", "configure_optimizers"}),
        (Inheriting, {"training_step", "test_step", "validation_step", "configure_optimizers", "on_train_end"}),
        (lstm.LightningLSTM, {"training_step", "on_train_epoch_end", "prepare_data", "configure_optimizers"}),
        (transformer.LightningTransformer, {"training_step", "prepare_data", "configure_optimizers"}),
    ],
)
def test_what_a_class_overrides(kind: type, hooks: set[str]) -> None:
    module = kind()
    asked = ["training_step", "test_step", "validation_step", "configure_optimizers", "on_train_end", "on_fit_start"]
    asked += ["on_train_epoch_end", "prepare_data", "backward", "optimizer_step", "no_such_hook"]
    assert {hook for hook in asked if overridden(module, hook)} == hooks


def test_a_hook_on_the_instance_is_its_own() -> None:
    module = pl.LightningModule()
    module.on_fit_end = lambda: None  # type: ignore[method-assign]
    assert overridden(module, "on_fit_end")


def test_lightnings_boring_data_are_data() -> None:
    splits = from_datamodule(datamodule=boring_classes.BoringDataModule())
    assert (len(splits.train), len(splits.test)) == (64, 64)
    with pytest.raises(ValueError, match="train_dataloader must return one torch DataLoader, got several loaders"):
        from_datamodule(datamodule=boring_classes.IterableBoringDataModule())
