"""LEAF's JSON files, tiny: users, pixels, characters, and what is wrong with a file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.data.leaf import LETTERS, femnist, leaf, shakespeare
from tests.tiny_files import WRITERS, pixels

SIZES = [2, 3, 4, 5]  # training samples of the users ann, bob, cy, dee


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    WRITERS[request.param](tmp_path, monkeypatch)
    return str(tmp_path / request.param)


def owners() -> list[int]:
    return [user for user, size in enumerate(SIZES) for _ in range(size)]


@pytest.mark.parametrize("root", ["femnist"], indirect=True)
def test_femnist(root: str) -> None:
    splits = femnist(root=root)
    assert splits.groups.tolist() == owners()
    assert (len(splits.train), len(splits.test), splits.num_classes) == (14, 8, 62)
    assert splits.train.inputs.dtype == torch.uint8
    assert splits.train.inputs[2:5].flatten(1).tolist() == pixels(3, 784).tolist()  # those of bob
    assert splits.train.labels[2:5].tolist() == [0, 1, 2]


@pytest.mark.parametrize("root", ["shakespeare"], indirect=True)
def test_shakespeare(root: str) -> None:
    splits = shakespeare(root=root)
    assert (len(LETTERS), splits.num_classes) == (80, 80)
    assert splits.train.inputs.dtype == torch.int8
    texts = ["".join(LETTERS[number] for number in sample) for sample in splits.train.inputs.tolist()]
    assert texts[0].startswith("A Play of Tests ADA. The rain is over")
    assert {len(text) for text in texts} == {80}
    assert texts[1] == texts[0][1:] + LETTERS[splits.train.labels[0]]
    assert splits.groups.tolist() == owners()


@pytest.mark.parametrize("root", ["leaf"], indirect=True)
def test_any_lists_of_numbers(root: str) -> None:
    splits = leaf(root=root)
    assert splits.test.inputs.tolist() == [[0, 0.5, -1], [1, 0.5, -1]] * 4
    assert splits.test.labels.tolist() == [0, 1] * 4  # floats in the file, as FedProx's scripts write them
    assert (splits.groups.tolist(), splits.num_classes) == (owners(), None)
    with pytest.raises(ValueError, match="has the class 2, and there are 2, from 0 on"):
        leaf(root=root, num_classes=2)


ANN = {"ann": {"x": [[0, 0, 0], [1, 1, 1]], "y": [0, 1]}}


def ann(**values: Any) -> dict[str, Any]:
    return {"users": ["ann"], "num_samples": [2], "user_data": {"ann": ANN["ann"] | values}}


def change(root: str, part: str = "train", **values: Any) -> None:
    path = next(iter(sorted((Path(root) / part).iterdir())))
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("root", ["leaf"], indirect=True)
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"users": ["ann", "eve"]}, "user 'eve' has no x and y in user_data"),
        ({"num_samples": [2, 4]}, "user 'bob' has 3 x and 3 y, and num_samples is 4"),
        ({"num_samples": [2]}, "zip"),
        ({"users": ["ann"], "num_samples": [2]}, "user 'bob' has samples in user_data, and is not in users"),
        (
            {"users": ["ann"], "num_samples": [2], "user_data": {"ann": {"x": [[1], [1, 2]], "y": [0, 1]}}},
            "'ann': .*inhomogen",
        ),
        (
            {"users": ["ann"], "num_samples": [1], "user_data": {"ann": {"x": [[1]], "y": [0]}}},
            r"user 'cy' has samples of another shape than those before: \(3,\), \(1,\)",
        ),
        (
            {"users": ["ann", "cy"], "num_samples": [2, 1], "user_data": {**ANN, "cy": {"x": [[1]], "y": [0]}}},
            "user 'cy'",
        ),
        (
            {"users": ["ann", "ann"], "num_samples": [2, 2], "user_data": ANN},
            r"user 'ann' is in .*train_9\.json already",
        ),
        ({"user_data": [1]}, "user_data must be an object"),
        ({"users": "ab"}, "users must be a list"),
        (ann(y=[0, 1.5]), "user 'ann': y must be one class a sample: whole numbers from 0 on"),
        (ann(y=[0, -1]), "user 'ann': y must be one class"),
        (ann(y=[0, None]), "user 'ann': y must be one class"),
        (ann(y=[2, True]), "user 'ann': y must be one class"),
        (ann(y=[[0], [1]]), "user 'ann': y must be one class"),
        (ann(y=[0, float("nan")]), "user 'ann': y must be one class"),
        (ann(x=[[0, 0, 0], [0, None, 0]]), "user 'ann': x must be numbers"),
        (ann(x=[["0", "1", "2"]] * 2), "user 'ann': x must be numbers"),
        (ann(x=[[0, 1, 1e39]] * 2), "user 'ann': x must be finite numbers of float32"),
        (ann(x=[[0, 1, float("nan")]] * 2), "user 'ann': x must be finite"),
        (ann(x="ab"), "user 'ann' has no x and y"),
    ],
)
def test_other_files_are_refused(root: str, values: dict[str, Any], said: str) -> None:
    change(root, **values)
    with pytest.raises(ValueError, match=rf"train_9\.json is not in LEAF's format: .*{said}"):
        leaf(root=root)


@pytest.mark.parametrize("root", ["leaf"], indirect=True)
def test_test_samples_are_like_those_for_training(root: str) -> None:
    change(root, part="test", **ann(y=[0, 8]))
    assert leaf(root=root).test.labels.tolist() == [0, 8]
    with pytest.raises(ValueError, match=r"test_9\.json .*: user 'ann' has the class 8, and there are 3, from 0 on$"):
        leaf(root=root, num_classes=3)
    change(root, part="test", **ann(x=[[0], [1]]))
    with pytest.raises(
        ValueError, match=r"test_9\.json .*: user 'ann' has samples of another shape .*: \(1,\), \(3,\)$"
    ):
        leaf(root=root)


@pytest.mark.parametrize("root", ["leaf"], indirect=True)
def test_a_user_stands_in_one_file_once(root: str) -> None:
    first, second = sorted((Path(root) / "train").iterdir())
    content = second.read_text()
    second.write_text(first.read_text())
    with pytest.raises(ValueError, match=rf"{second.name} .*: user 'ann' is in {first.name} already$"):
        leaf(root=root)
    second.write_text(content.replace('"dee": {', '"cy": {'))
    with pytest.raises(ValueError, match=rf"{second.name} .*: 'cy' stands twice in one object$"):
        leaf(root=root)
    second.write_bytes('"caf\xe9"'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{second.name} is not in LEAF's format: .*can't decode byte 0xe9"):
        leaf(root=root)


@pytest.mark.parametrize("root", ["shakespeare"], indirect=True)
@pytest.mark.parametrize("y", [["", "ab"], [1, 2]])
def test_a_sentence_has_one_next_character(root: str, y: list[Any]) -> None:
    change(root, users=["ann"], num_samples=[2], user_data={"ann": {"x": ["a" * 80] * 2, "y": y}})
    with pytest.raises(ValueError, match=r"train_9\.json is not in LEAF's format: user 'ann': "):
        shakespeare(root=root)


@pytest.mark.parametrize("root", ["shakespeare", "leaf", "femnist"], indirect=True)
def test_users_may_have_no_samples(root: str, request: pytest.FixtureRequest) -> None:
    change(root, users=["ann"], num_samples=[0], user_data={"ann": {"x": [], "y": []}})
    change(root, part="test", users=["ann"], num_samples=[0], user_data={"ann": {"x": [], "y": []}})
    splits = {"shakespeare": shakespeare, "leaf": leaf, "femnist": femnist}[Path(root).name](root=root)
    assert splits.groups.tolist() == [0] * 4 + [1] * 5  # cy and dee
    assert splits.test.inputs.shape == (0, *splits.train.inputs.shape[1:])


@pytest.mark.parametrize("root", ["leaf"], indirect=True)
def test_a_file_without_users_is_refused(root: str) -> None:
    (Path(root) / "test" / "b.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"b\.json is not in LEAF's format: it must have users, num_samples and user"):
        leaf(root=root)


@pytest.mark.parametrize("root", ["shakespeare"], indirect=True)
def test_a_character_that_is_not_known_is_named(root: str) -> None:
    with pytest.raises(ValueError, match=r"LEAF's format: user 'ann': dataset\.letters: lacks the character 'g'"):
        shakespeare(root=root, letters=LETTERS.replace("g", ""))


@pytest.mark.parametrize("root", ["femnist"], indirect=True)
def test_pixels_are_bytes(root: str) -> None:
    change(root, users=["ann"], num_samples=[1], user_data={"ann": {"x": [[0.3] * 784], "y": [1]}})
    with pytest.raises(ValueError, match="pixels must be whole numbers from 0 to 255, divided by 255"):
        femnist(root=root)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train has no \.json files: put those that LEAF's preprocess\.sh"):
        leaf(root=str(tmp_path))
