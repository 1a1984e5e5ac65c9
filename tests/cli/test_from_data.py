"""Models take the shape of samples and the number of classes from the dataset."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flrl.cli.from_data import filled
from flrl.data import DatasetSource, Splits, TensorSource, from_datasets
from tests.toys import Linear

SOURCE = TensorSource(torch.zeros(4, 2, 3), torch.tensor([0, 1, 2, 6]))
DATA = Splits(SOURCE, SOURCE)


class Own(Linear):
    """A model of a user's own that wants both."""

    def __init__(self, input_shape: list[int], num_classes: int) -> None:
        super().__init__(features=torch.Size(input_shape).numel(), classes=num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch[0].flatten(1), batch[1]), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step((batch[0].flatten(1), batch[1]), batch_idx)


def own_data() -> Splits:
    made = torch.Generator().manual_seed(0)
    sets = [torch.utils.data.TensorDataset(torch.randn(n, 2, 5, generator=made), torch.arange(n) % 4) for n in (60, 20)]
    return from_datasets(train=sets[0], test=sets[1])


def model(**values: Any) -> dict[str, Any]:
    return {"model": {"_target_": "mine.Net", "parts": [{"_target_": "flrl.models.nets.mlp_2nn", **values}]}}


def test_null_is_filled_at_any_depth() -> None:
    config = filled(model(input_shape=None, num_classes=None, hidden=3) | {"seed": 0}, DATA)
    assert config == model(input_shape=[2, 3], num_classes=7, hidden=3) | {"seed": 0}
    assert filled(config, DATA) == config


def test_values_that_do_not_contradict_stay() -> None:
    assert filled(model(num_classes=9), DATA) == model(num_classes=9)
    plain = {"model": {"_target_": "mine.Net", "input_shape": [224, 224]}}  # it may resize
    assert filled(plain, DATA) == plain


WRONG = {
    "model.parts[0].num_classes=6: the dataset has 7 classes": {"num_classes": 6},
    "model.parts[0].input_shape=[6]: the dataset's samples have the shape [2, 3]": {"input_shape": [6]},
}


@pytest.mark.parametrize(("message", "values"), WRONG.items(), ids=WRONG)
def test_contradictions_are_refused(message: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the dataset") as error:
        filled(model(**values), DATA)
    assert str(error.value) == message


@pytest.mark.parametrize(("key", "lacking"), [("input_shape", "no shape"), ("num_classes", "no classes")])
def test_what_cannot_be_read_is_named(key: str, lacking: str) -> None:
    source = DatasetSource([("a text", "a class")])  # type: ignore[arg-type]
    message = f"^model\\.parts\\[0\\]\\.{key}=null: the dataset's samples have {lacking} that could be read; set "
    with pytest.raises(ValueError, match=message):
        filled(model(**{key: None}), Splits(source, source))


def test_a_model_and_a_dataset_of_ones_own(cli: Any) -> None:
    for path, text in {
        "model/own": "_target_: tests.cli.test_from_data.Own\ninput_shape: null\nnum_classes: null\n",
        "dataset/own": "_target_: tests.cli.test_from_data.own_data\n",
    }.items():
        Path(f"my/{path}.yaml").parent.mkdir(parents=True)
        Path(f"my/{path}.yaml").write_text(text)
    own = ("--config-dir=my", "dataset=own", "strategy.rounds=1", "logger=none")
    cases = {
        "own": (("backend=process", "backend.workers=1"), {"input_shape": [2, 5], "num_classes": 4}),
        "mlp_2nn": ((), {"num_classes": 4}),
    }
    for name, (backend, chosen) in cases.items():
        done = cli(*own, *backend, f"model={name}", f"hydra.run.dir={name}")
        assert (done.code, done.err) == (0, "")
        saved = yaml.safe_load(Path(name, ".hydra/config.yaml").read_text())["model"]
        assert {key: saved[key] for key in chosen} == chosen
    assert saved["net"]["input_shape"] == [2, 5]
