"""Pages of client memory are used again, and no more are kept than the limit says."""

import torch

from flrl.clients import pages
from flrl.clients.pages import KEPT, LARGE, has_own, room
from flrl.clients.segment import ordered


def kept() -> int:
    return sum(map(len, pages._kept))


def test_pages_are_used_again_by_tensors_of_their_size() -> None:
    pages._kept.clear()
    one, two = room(LARGE), room(LARGE)
    part = one.view(torch.float32)[5:]
    where = one.data_ptr(), two.data_ptr()
    part.fill_(3.0)
    del one
    assert kept() == 0  # a view of it is left
    assert room(LARGE).data_ptr() not in where
    assert kept() == LARGE
    del part
    assert kept() == 2 * LARGE
    assert room(LARGE + 8).data_ptr() not in where
    third = room(LARGE)
    assert third.data_ptr() == where[0]
    assert float(third.view(torch.float32)[5]) == 3.0  # not cleared


def test_no_more_is_kept_than_the_limit() -> None:
    pages._kept.clear()
    pieces = [room(KEPT // 4) for _ in range(6)]
    last = pieces[-1].data_ptr()
    while pieces:
        pieces.pop(0)
    assert kept() == KEPT
    assert room(KEPT // 4).data_ptr() == last
    del pieces
    assert room(KEPT + 1).numel() == KEPT + 1
    assert kept() == KEPT
    small = room(LARGE - 1)
    assert small.numel() == LARGE - 1
    del small
    assert kept() == KEPT


def test_what_has_pages_of_its_own_is_not_copied_into_others() -> None:
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
