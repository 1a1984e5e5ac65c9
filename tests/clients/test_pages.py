"""Pieces of client memory are used again, and no more is kept than the limit says."""

import gc

import pytest
import torch

from flrl.clients import pages
from flrl.clients.pages import AREA, KEPT, LARGE, has_own, room
from flrl.clients.segment import ordered


@pytest.fixture(autouse=True)
def no_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of those of other tests."""
    gc.collect()
    for name, empty in (("_pieces", {}), ("_roomy", {}), ("_idle", [])):
        monkeypatch.setattr(pages, name, empty)


def kept() -> int:
    return sum(len(area.pages) for area in pages._idle)


def test_pieces_are_used_again_by_tensors_of_their_size() -> None:
    one, two = room(LARGE), room(LARGE)
    part = one.view(torch.float32)[5:]
    where = one.data_ptr(), two.data_ptr()
    part.fill_(3.0)
    del one
    assert kept() == 0  # a view of it is left
    assert room(LARGE).data_ptr() not in where
    del part
    assert kept() == 3 * LARGE  # that of one piece, and that of two that was made in between
    assert room(LARGE + 8).data_ptr() not in where
    third = room(LARGE)  # where one was left last
    assert third.data_ptr() == where[0]
    assert float(third.view(torch.float32)[5]) == 3.0  # not cleared


def test_areas_grow_with_the_number_of_tensors_of_a_size() -> None:
    size = AREA // 8 - 8  # a piece begins at a multiple of 64 bytes
    held = [room(size) for _ in range(1 + 1 + 2 + 4 + 8 + 1)]
    assert pages._pieces[size] == 1 + 1 + 2 + 4 + 8 + 8
    assert [area.count for area in pages._roomy[size]] == [8]
    assert len({piece.data_ptr() for piece in held}) == 17
    assert all(piece.data_ptr() % 64 == 0 for piece in held)
    for number, piece in enumerate(held):
        piece.fill_(number)
    assert [int(piece.amin()) for piece in held] == [int(piece.amax()) for piece in held] == list(range(17))
    others = [room(LARGE + 64 * place) for place in range(20)]
    assert [pages._pieces[piece.nbytes] for piece in others] == [1] * 20


def test_no_more_is_kept_than_the_limit() -> None:
    size = KEPT // 2  # larger than an area of several
    held = [room(size) for _ in range(6)]
    assert pages._pieces[size] == 1 + 1 + 1 + 1 + 1 + 1
    last = held[-1].data_ptr()
    while held:
        held.pop(0)
    assert kept() == KEPT
    assert pages._pieces[size] == 2
    again = [room(size), room(size)]
    assert last in [piece.data_ptr() for piece in again]
    del again
    assert room(KEPT + 1).numel() == KEPT + 1
    assert pages._pieces[KEPT + 1] == 0
    small = room(LARGE - 1)
    assert small.numel() == LARGE - 1
    assert not has_own(small)


def test_what_has_a_piece_of_its_own_is_not_copied_into_another() -> None:
    whole = room(2 * LARGE).view(torch.float32)
    assert has_own(whole)
    assert not has_own(whole[: LARGE // 4])
    assert not has_own(whole[LARGE // 4 :])
    assert not has_own(torch.empty(2 * LARGE))
    kept = ordered({"a": whole, "b": whole[: LARGE // 4]}, 0)
    assert kept["a"] is whole
    assert kept["b"].data_ptr() != whole.data_ptr()
    address = whole.data_ptr()
    del whole, kept
    assert address not in pages._given


def test_a_piece_that_goes_while_another_is_given_is_taken_back_later() -> None:
    held = room(LARGE)
    address = held.data_ptr()
    with pages._lock:  # as when garbage is collected in `room`, in the same thread
        del held
        assert len(pages._gone) == 1
        assert pages._idle == []
    assert room(LARGE).data_ptr() == address
    assert not pages._gone
