"""LEAF's datasets from their JSON files: samples by user, in the folders `train` and `test`.

Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, arXiv 1812.01097. Each file has `users`, `num_samples`
and `user_data`, which holds `x` and `y` by user; the scripts of LEAF's repository write them, and those of FedProx.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flrl.data.characters import encoded
from flrl.data.sources import Splits, TensorSource

LETTERS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The characters of LEAF's Shakespeare, in the order of its numbers."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The samples of one folder: inputs, targets and each sample's user."""

    inputs: np.ndarray
    targets: np.ndarray
    users: list[str]


def femnist(*, root: str, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> Splits:
    """FEMNIST: handwritten digits and letters by writer, 28 x 28 pixels, 62 classes; black on white (1.0).

    Args:
        root: the folder that has `train` and `test`; in a clone of LEAF, `data/femnist/data`.
        mean: mean of the pixels in [0, 1]; null leaves them in [0, 1], as LEAF does.
        std: standard deviation of the pixels.

    Returns:
        Pixels as uint8; groups are writers.

    Raises:
        FileNotFoundError: a folder has no JSON files.
        ValueError: a file is not in LEAF's format, or has other samples.
    """
    return _splits(root, _pixels, _classes, num_classes=62, mean=mean, std=std)


def shakespeare(*, root: str, letters: str = LETTERS) -> Splits:
    """The plays of Shakespeare by speaking role: 80 characters, of which the next one is to be predicted.

    Args:
        root: the folder that has `train` and `test`; in a clone of LEAF, `data/shakespeare/data`.
        letters: all characters, in the order of their numbers; LEAF's 80 by default.

    Returns:
        Inputs `[samples, 80]` and targets `[samples]` are numbers of characters; groups are roles.

    Raises:
        FileNotFoundError: a folder has no JSON files.
        ValueError: a file is not in LEAF's format, or has other samples or characters.
    """

    def sentences(values: Sequence[str]) -> np.ndarray:
        lengths = {len(value) for value in values}
        if len(lengths) > 1:
            raise ValueError("its sentences differ in length")
        return encoded("".join(values), letters, key="dataset.letters").reshape(len(values), *lengths or [0])

    def following(values: Sequence[str]) -> np.ndarray:
        if any(len(value) != 1 for value in values):
            raise ValueError("y must be one character a sample")
        return encoded("".join(values), letters, key="dataset.letters")

    return _splits(root, sentences, following, num_classes=len(letters))


def leaf(*, root: str, num_classes: int | None = None) -> Splits:
    """Any dataset in LEAF's format whose samples are lists of numbers, of equal length, with a class.

    Args:
        root: the folder that has `train` and `test`.
        num_classes: number of classes; null: the largest class plus one.

    Returns:
        Inputs as float32; groups are users.

    Raises:
        FileNotFoundError: a folder has no JSON files.
        ValueError: a file is not in LEAF's format, or has other samples.
    """
    return _splits(root, _numbers, _classes, num_classes=num_classes)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """Inputs as float32."""
    found = np.asarray(values)
    if found.dtype.kind not in "iuf":  # where there is a null, numbers are objects
        raise ValueError("x must be numbers")
    with np.errstate(over="ignore"):
        narrow = found.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise ValueError("x must be finite numbers of float32")
    return narrow


def _classes(values: Sequence[Any]) -> np.ndarray:
    """Targets as int64; files of FedProx's scripts have them as floats."""
    found = np.asarray(values)
    whole = found.dtype.kind in "iuf" and found.ndim == 1 and not any(isinstance(value, bool) for value in values)
    if not whole or not ((found >= 0) & (found < 2**53) & (found % 1 == 0)).all():
        raise ValueError("y must be one class a sample: whole numbers from 0 on")
    return found.astype(np.int64)


def _pixels(values: Sequence[Sequence[float]]) -> np.ndarray:
    """Images as uint8 `[n, 1, 28, 28]`: LEAF has divided whole numbers by 255."""
    scaled = _numbers(values).astype(np.float64).reshape(len(values), 1, 28, 28) * 255
    whole = np.rint(scaled)
    if scaled.size and (np.abs(scaled - whole).max() > 1e-3 or whole.min() < 0 or whole.max() > 255):
        raise ValueError("pixels must be whole numbers from 0 to 255, divided by 255")
    return whole.astype(np.uint8)


def _splits(
    root: str,
    inputs: Callable[[Sequence[Any]], np.ndarray],
    targets: Callable[[Sequence[Any]], np.ndarray],
    *,
    num_classes: int | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    train_part = _read(Path(root, "train"), inputs, targets, num_classes)
    test_part = _read(Path(root, "test"), inputs, targets, num_classes, shape=train_part.inputs.shape[1:])
    train, test = (
        TensorSource(torch.from_numpy(part.inputs), torch.from_numpy(part.targets), mean=mean, std=std)
        for part in (train_part, test_part)
    )
    numbers: dict[str, int] = {}
    groups = np.array([numbers.setdefault(user, len(numbers)) for user in train_part.users], dtype=np.int64)
    return Splits(train, test, groups=groups, num_classes=num_classes)


def _read(
    folder: Path,
    inputs: Callable[[Sequence[Any]], np.ndarray],
    targets: Callable[[Sequence[Any]], np.ndarray],
    num_classes: int | None,
    shape: tuple[int, ...] | None = None,
) -> _Part:
    """All samples of a folder: files in the order of their names, users in that of the files.

    Args:
        folder: has the files.
        inputs: makes a user's inputs of its `x`.
        targets: makes a user's classes of its `y`.
        num_classes: number of classes; None: any.
        shape: of a sample; None: that of the first one.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{folder.resolve()} has no .json files: put those that LEAF's preprocess.sh writes there, such as "
            f"all_data_0_niid_0_keep_0_{folder.name}_9.json"
        )

    def converted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # A user's samples become arrays as soon as they are parsed: as lists they would take many times their memory.
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
        if not (isinstance(found.get("x"), list) and isinstance(found.get("y"), list)):
            return found
        try:
            return {"x": inputs(found["x"]), "y": targets(found["y"]).astype(np.int64)}
        except (ValueError, TypeError) as error:
            return {_WRONG: error}

    xs, ys, users = [], [], []
    seen: dict[str, str] = {}
    for path in files:
        try:
            with path.open(encoding="utf-8") as file:
                content = json.load(file, object_pairs_hook=converted)
            for user, x, y in _by_user(content):
                if user in seen:
                    raise ValueError(f"user {user!r} is in {seen[user]} already")
                seen[user] = path.name
                shape = x.shape[1:] if shape is None and len(x) else shape
                if len(x) and x.shape[1:] != shape:
                    raise ValueError(
                        f"user {user!r} has samples of another shape than those before: {x.shape[1:]}, {shape}"
                    )
                if num_classes is not None and y.max(initial=-1) >= num_classes:
                    raise ValueError(f"user {user!r} has the class {y.max()}, and there are {num_classes}, from 0 on")
                xs.append(x)
                ys.append(y)
                users += [user] * len(x)
        except (ValueError, TypeError) as error:  # also what json raises
            raise ValueError(f"{path} is not in LEAF's format: {error}") from None
    some = [x for x in xs if len(x)] or [np.empty((0, *shape), x.dtype) if shape else x for x in xs]
    return _Part(np.concatenate(some), np.concatenate(ys), users)


_WRONG = "what is wrong with the samples"


def _by_user(content: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
    if not isinstance(content, Mapping) or not {"users", "num_samples", "user_data"} <= set(content):
        raise ValueError("it must have users, num_samples and user_data")
    kinds = {"users": list, "num_samples": list, "user_data": dict}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise ValueError(f"{name} must be {'a list' if kind is list else 'an object'}")
    found = []
    for user, count in zip(content["users"], content["num_samples"], strict=True):
        data = content["user_data"].get(user)
        if isinstance(data, Mapping) and _WRONG in data:
            raise ValueError(f"user {user!r}: {data[_WRONG]}")
        if not isinstance(data, Mapping) or not isinstance(data.get("x"), np.ndarray):
            raise ValueError(f"user {user!r} has no x and y in user_data")
        if not len(data["x"]) == len(data["y"]) == count:
            raise ValueError(f"user {user!r} has {len(data['x'])} x and {len(data['y'])} y, and num_samples is {count}")
        found.append((str(user), data["x"], data["y"]))
    unnamed = sorted(content["user_data"].keys() - {user for user, _, _ in found})
    if unnamed:
        raise ValueError(f"user {unnamed[0]!r} has samples in user_data, and is not in users")
    return found
