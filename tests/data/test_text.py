"""Text by section: pieces, owners, headings, and the last pieces for testing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flrl.data import Splits
from flrl.data.characters import encoded
from flrl.data.text import text
from tests.tiny_files import PLAY


def made(folder: Path, content: str, **options: Any) -> tuple[Splits, list[str], list[str]]:
    """The dataset, and its training and test pieces with their last target, as text."""
    path = folder / "text.txt"
    path.write_text(content)
    splits = text(file=str(path), **options)
    letters = "".join(sorted(set(content)))
    pieces = []
    for source in (splits.train, splits.test):
        whole = torch.cat([source.inputs.long(), source.targets[:, -1:]], dim=1)
        assert source.inputs[:, 1:].tolist() == source.targets[:, :-1].tolist()
        pieces.append(["".join(letters[number] for number in piece) for piece in whole.tolist()])
    return splits, pieces[0], pieces[1]


def test_sections_between_blank_lines(tmp_path: Path) -> None:
    splits, train, test = made(tmp_path, "abcdefghi\n \n\nxy\n\nABCDEFG", length=2, test_share=0.25)
    assert train == ["abc", "cde", "efg", "ABC", "CDE", "EFG"]  # xy and what fills no piece are left out
    assert test == ["ghi"]
    assert splits.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.groups.dtype == np.int64
    assert (splits.num_classes, splits.train.labels) == (len(set("abcdefghi\n xyABCDEFG")), None)
    assert (splits.train.inputs.dtype, splits.train.targets.dtype) == (torch.int8, torch.int64)


def test_speakers_of_a_play(tmp_path: Path) -> None:
    splits, train, _ = made(tmp_path, PLAY, sections="speakers", length=10, test_share=0.0)
    said = ["".join(piece[:-1] for piece in np.array(train)[splits.groups == client]) for client in (0, 1)]
    assert said[0].startswith("The rain is over and the house is warm.\n")
    assert "iron.\n\nThen come inside" in said[0]  # all that ADA says is one client's
    assert said[1].startswith("I walked along the river for an hour,\nand saw")
    assert not any("Play of Tests" in piece for piece in train)


def test_headings_by_a_regular_expression(tmp_path: Path) -> None:
    content = "# one\naaaa\n# two\nbbbbb\n# one\ncc"
    splits, train, _ = made(tmp_path, content, sections="^# (.+)\n", length=3, test_share=0.0)
    assert train == ["aaaa", "a\ncc", "bbbb"]
    assert splits.groups.tolist() == [0, 0, 1]
    _, whole, _ = made(tmp_path, content, sections="^# .+$", length=2, test_share=0.0)
    assert whole[:2] == ["\naa", "aaa"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 0}, r"dataset\.length=0: must be at least 1"),
        ({"length": 99}, r"dataset\.length=99: no section of .* has 100 characters"),
        ({"test_share": 1.0}, r"dataset\.test_share=1\.0: must be at least 0 and below 1"),
        ({"sections": "^##"}, r"dataset\.sections=\^##: the file has no such heading"),
        ({"sections": "(a"}, r"dataset\.sections=\(a: must be blank_lines, speakers or a regular expression: missing"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        made(tmp_path, "aaaa\n\nbbbb", **options)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^dataset\.file=.*none\.txt: there is no such file"):
        text(file=str(tmp_path / "none.txt"))


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^dataset\.file=.*old\.txt: is no text in UTF-8: byte 3$"):
        text(file=str(tmp_path / "old.txt"))


def test_numbers_of_characters_are_no_pixels() -> None:
    assert encoded("ba", "ab", key="k").dtype == np.int8
    many = "".join(map(chr, range(129)))
    assert encoded(many, many, key="k").tolist() == [*range(129)]
    assert encoded(many, many, key="k").dtype == np.int16
    with pytest.raises(ValueError, match=r"^k: has a character twice$"):
        encoded("a", "aba", key="k")
    with pytest.raises(ValueError, match=r"^k: lacks the character 'c', which the text has$"):
        encoded("abc", "ab", key="k")
