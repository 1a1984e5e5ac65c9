"""MI-FACE on digits: pictures of which the model is sure, and that are like their class; noise from a new model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flrl.attacks import Observation
from flrl.attacks.mi_face import MIFace, blurred
from flrl.data.datasets import digits
from flrl.models.nets import softmax_regression
from flrl.trainers import TracedTrainer
from tests.attacks.observing import classifier, found, observed

SOURCE = digits().train
MEANS = torch.stack([SOURCE.inputs[SOURCE.targets == c].mean(0) for c in range(10)]).flatten(1).numpy()
TRAINER = TracedTrainer(batch_size=16, local_epochs=10)


def likeness(pictures: torch.Tensor) -> np.ndarray:
    """The correlation of each picture with the mean of each class."""
    return np.corrcoef(pictures.flatten(1).numpy(), MEANS)[: len(pictures), len(pictures) :]


@pytest.fixture(scope="module")
def trained() -> Observation:
    return observed(classifier(softmax_regression), SOURCE, np.arange(600), trainer=TRAINER)[0]


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_pictures_are_like_their_class(trained: Observation, blur: float) -> None:
    observation = trained
    finding = found(MIFace(blur=blur), observation)
    assert finding.inputs is not None
    assert finding.labels is not None
    assert finding.labels.tolist() == list(range(10))
    assert finding.numbers["lowest_confidence"] > 0.9
    like = likeness(finding.inputs)
    assert np.diag(like).min() > 0.4
    assert (like.argmax(1) == np.arange(10)).all()
    assert finding.inputs.min() >= 0.0
    assert finding.inputs.max() <= 1.0
    weights, bias = observation.layout.unflatten((observation.sent + observation.update).float()).values()
    sure = (finding.inputs.flatten(1) @ weights.T + bias).softmax(1).diagonal()
    assert float(sure.mean()) == pytest.approx(finding.numbers["confidence"], abs=1e-4)


def test_a_new_model_has_no_pictures_of_classes() -> None:
    observation, _ = observed(classifier(softmax_regression), SOURCE, np.arange(2), unseen=True)
    finding = found(MIFace(iterations=300, classes=[3, 4]), observation)
    assert finding.inputs is not None
    assert finding.numbers["confidence"] < 0.6
    assert np.abs(likeness(finding.inputs)[[0, 1], [3, 4]]).max() < 0.25


def test_a_blur_spreads_a_point_and_keeps_its_sum() -> None:
    image = torch.zeros(1, 2, 9, 9)
    image[0, 1, 4, 4] = 1.0
    smooth = blurred(image, 1.0)
    assert float(smooth.sum()) == pytest.approx(1.0)
    weights = torch.exp(-0.5 * torch.arange(-3, 4) ** 2)
    assert float(smooth[0, 1, 4, 4]) == pytest.approx(float(1 / weights.sum()) ** 2)
    assert smooth[0, 0].abs().sum() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"iterations": 0}, "attack.iterations=0: must be at least 1"),
        ({"patience": 0}, "attack.patience=0: must be at least 1"),
        ({"lr": 0.0}, "attack.lr=0.0: must be positive"),
        ({"confidence": 1.5}, "attack.confidence=1.5: must be above 0 and at most 1"),
        ({"blur": -1.0}, "attack.blur=-1.0: must be at least 0"),
        ({"classes": []}, "attack.classes=[]: must be classes from 0 on, or null"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="attack") as error:
        MIFace(**settings)
    assert str(error.value) == said


def test_what_does_not_apply_is_said() -> None:
    observation, _ = observed(classifier(softmax_regression), SOURCE, np.arange(2), unseen=True)
    inputs = observation.inputs
    gradient = replace(observation, local=replace(observation.local, only_gradient=True))
    assert MIFace().objection(gradient) == "the client has sent a gradient and no model"
    words = replace(observation, inputs=replace(inputs, dtype=torch.int64))
    assert "can be changed a little" in str(MIFace().objection(words))
    flat = replace(observation, inputs=replace(inputs, shape=(64,)))
    assert "are no images" in str(MIFace(blur=1.0).objection(flat))
    assert MIFace(classes=[10]).objection(observation) == "attack.classes=[10]: there are 10"
    assert MIFace().objection(replace(observation, clients=[0, 1])) is None
