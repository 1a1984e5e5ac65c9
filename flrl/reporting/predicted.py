"""What the final model says of samples: the confusion matrix, and the clients that it serves worst."""

import base64
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.data.facts import bounds_of, facts_of
from flrl.data.sources import Source
from flrl.lightning.predicting import classes_of
from flrl.seeding import SERVER, generator_for

BATCH_SIZE = 100
OF_A_CLIENT = 50
WORST = 6
SAMPLES = 8
_PICTURE = 64
_AT_ONCE = 40


@dataclass(slots=True)
class Predicted:
    """What the final model says of samples.

    Attributes:
        confusion: number of test samples by class and predicted class, int64 `[classes, classes]`; None if unknown.
        num_test: number of test samples of the whole dataset.
        worst: the clients with the lowest accuracy, the worst first.
        asked: number of clients whose samples were predicted.
        held_out: whether those were held-out samples; else they were training samples.
        counts: number of training samples by client and class; None if unknown.
        notes: what is left out, and why.
    """

    confusion: np.ndarray | None = None
    num_test: int = 0
    worst: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    held_out: bool = False
    counts: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


def predict(model: BoundModel, data: FederatedData, *, seed: int, seconds: float, round: int = 0) -> Predicted:
    """Predict test samples, and samples of each client; what cannot be predicted is left out, with a note.

    Args:
        model: the final model; everything but its vector is restored.
        data: the federation.
        seed: which samples come first, should there be no time for all.
        seconds: how long half of the predictions may take; the batch that is begun is finished.
        round: the round whose samples of clients are predicted.
    """
    found = Predicted(counts=data.label_counts(), num_test=len(data.splits.test))
    of_clients = partial(_clients, round=round)
    for what, make in (("The confusion matrix", _confusion), ("Predictions by client", of_clients)):
        try:
            reason = _unsuited(model, data) or make(found, model, data, seed, seconds)
        except Exception as error:  # of the user's module or dataset: the rest of the report does without
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if reason:
            found.notes.append(
                f"{what} is left out: {reason}." if "matrix" in what else f"{what} are left out: {reason}."
            )
    return found


def _unsuited(model: BoundModel, data: FederatedData) -> str | None:
    if not model.layout.size:
        return "there is no global model"
    if model.layout.personal:
        return "clients keep a part of the model for themselves"
    return None if facts_of(data.splits).num_classes else "samples have no class"


def _confusion(found: Predicted, model: BoundModel, data: FederatedData, seed: int, seconds: float) -> str | None:
    labels, classes = data.splits.test.labels, facts_of(data.splits).num_classes or 0
    if labels is None or not len(labels):
        return "there are no test samples with a class"
    order = generator_for(seed, 0, SERVER, "report").permutation(len(labels))
    predicted = np.concatenate([*_predictions(model, data.splits.test, order, seconds)])
    classes = max(classes, int(predicted.max()) + 1)
    cells = labels[order[: len(predicted)]] * classes + predicted
    found.confusion = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return None


def _clients(
    found: Predicted, model: BoundModel, data: FederatedData, seed: int, seconds: float, *, round: int
) -> str | None:
    labels = data.splits.train.labels
    if labels is None:
        return "training samples have no class"
    holding = data.holding_out()
    found.held_out = bool(len(holding))
    clients = holding if found.held_out else np.arange(data.num_clients)
    clients = generator_for(seed, 0, SERVER, "report").permutation(clients)
    of = data.holdout_indices if found.held_out else data.train_indices
    rows: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    begun = time.perf_counter()
    while len(rows) < len(clients) and (not rows or time.perf_counter() - begun < seconds):
        several = clients[len(rows) : len(rows) + max(1, min(_AT_ONCE, len(rows)))]  # few first, should they be slow
        samples = [of(int(client), round)[:OF_A_CLIENT] for client in several]
        predicted = np.concatenate([*_predictions(model, data.splits.train, np.concatenate(samples), float("inf"))])
        parts = np.split(predicted, np.cumsum([len(part) for part in samples])[:-1])
        for client, indices, said in zip(several, samples, parts, strict=True):
            rows.append((float(np.mean(said == labels[indices])), int(client), indices, said))
    found.asked = len(rows)
    for accuracy, client, indices, said in sorted(rows, key=lambda row: (row[0], -len(row[2]), row[1]))[:WORST]:
        wrong = np.flatnonzero(said != labels[indices])[:SAMPLES]
        shown: list[dict[str, Any]] = [{"true": int(labels[indices[at]]), "predicted": int(said[at])} for at in wrong]
        pictures = _pictures(data.splits.train, indices[wrong])
        for sample, picture in zip(shown, pictures, strict=False):
            sample["picture"] = picture
        found.worst.append({"client": client, "accuracy": accuracy, "samples": len(indices), "wrong": shown})
    return None


def _predictions(model: BoundModel, source: Source, indices: np.ndarray, seconds: float) -> Iterator[np.ndarray]:
    """The predicted class of each sample, a batch at a time, until the time is over."""
    begun = time.perf_counter()
    model.put_back()
    for predicted in classes_of(model, source, indices, BATCH_SIZE):
        yield predicted
        if time.perf_counter() - begun > seconds:
            break


def _pictures(source: Source, indices: np.ndarray) -> list[str]:
    """Samples as PNG in a data URL, if they are pictures of one or three channels; else nothing."""
    if not len(indices):
        return []
    batch: Any = next(iter(source.batches(indices, len(indices))))
    inputs = batch[0] if isinstance(batch, tuple | list) else None
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        return []
    inputs = inputs.detach().cpu().float()
    bounds = bounds_of(source)
    low, high = (end.cpu() for end in bounds) if bounds else (inputs.min(), inputs.max())
    scaled = ((inputs - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return [_png(picture) for picture in (scaled * 255).round().to(torch.uint8)]


def _png(picture: Tensor) -> str:
    image = Image.fromarray(picture[0].numpy() if len(picture) == 1 else picture.permute(1, 2, 0).numpy())
    image.thumbnail((_PICTURE, _PICTURE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
