from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flrl.clients import ClientIndex
from tests.clients.test_store import opened, remember


def saved(folder: Path) -> ClientIndex:
    memory = opened(folder).memory().updated(remember(*range(5)))
    memory.save()
    return memory.updated({2: {"steps": torch.tensor(3), "a/b": torch.zeros(2, 3)}}).save()


def test_it_comes_back_from_tensors_and_json(tmp_path: Path) -> None:
    index = saved(tmp_path)
    found = ClientIndex.read(index.tensors(), index.described())
    assert list(found.rows()) == list(index.rows())
    assert len(found) == 5
    assert [t.dtype for t in index.tensors().values()] == [
        torch.int64, torch.int32, torch.int64, torch.int32, torch.int64
    ]  # fmt: skip
    assert index.descriptions == (
        (("control", "F32", (100,)),),
        (("steps", "I64", ()), ("a/b", "F32", (2, 3))),
    )
    with pytest.raises(ValueError, match="does not belong to it"):
        ClientIndex.read(index.tensors() | {"client_ids": index.client_ids + 1}, index.described())


def test_a_part_names_its_files_alone_and_parts_make_the_whole(tmp_path: Path) -> None:
    index = saved(tmp_path)
    first, second = index.only([0, 1, 3, 4, 77]), index.only([2])
    assert (first.client_ids.tolist(), [s.name for s in first.segments]) == (
        [0, 1, 3, 4],
        ["segment-000001.safetensors"],
    )
    assert (second.client_ids.tolist(), [s.name for s in second.segments]) == ([2], ["segment-000002.safetensors"])
    whole = ClientIndex.joined([second, first])
    assert list(whole.rows()) == list(index.rows())
    assert whole.contents() == index.contents()
    assert len(ClientIndex.joined([])) == 0


def test_what_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    index = saved(tmp_path)
    with pytest.raises(ValueError, match="client 2 is in the index twice"):
        ClientIndex.joined([index, index.only([2])])
    other = index.only([2])
    other = replace(other, segments=(replace(other.segments[0], nbytes=1),), client_ids=other.client_ids + 9)
    with pytest.raises(ValueError, match=r"segment-000002.safetensors has (1|\d+) bytes in one index, (1|\d+) in ano"):
        ClientIndex.joined([index, other])


def test_contents_do_not_depend_on_where_they_lie(tmp_path: Path) -> None:
    index = saved(tmp_path / "a")
    memory = opened(tmp_path / "b").restored(index, tmp_path / "a")
    copied = opened(tmp_path / "c").memory().updated(dict(memory))
    assert copied.save().contents() == index.contents()
    assert copied.updated(remember(4, value=1)).save().contents() != index.contents()
