"""Top-k with error feedback."""

import pytest
import torch

from flrl.transforms import TopK
from tests.transforms.given import context, update


def test_the_largest_are_sent_and_the_rest_is_remembered() -> None:
    top_half = TopK(share=0.5)
    sent, memory, counts = top_half.client(update(1.0, -4.0, 3.0, 0.5), {}, context())
    assert sent.vectors["update"].tolist() == [0.0, -4.0, 3.0, 0.0]
    assert memory["error"].tolist() == [1.0, 0.0, 0.0, 0.5]
    assert counts == {"sent": 2.0}
    second, memory, _ = top_half.client(update(1.0, 1.0, 1.25, 1.0), memory, context())
    # With the error it is (2, 1, 1.25, 1.5).
    assert second.vectors["update"].tolist() == [2.0, 0.0, 0.0, 1.5]
    assert memory["error"].tolist() == [0.0, 1.0, 1.25, 0.0]


def test_bytes_are_those_of_values_and_places() -> None:
    """Two of four numbers: two float32 values; a bitmap of places, and its kind."""
    sent, _, _ = TopK(share=0.4).client(update(1.0, -4.0, 3.0, 0.5), {}, context())
    assert sent.payload == {"update": 2 * 4 + 2, "control": 4}


def test_of_equal_numbers_the_first_are_sent() -> None:
    sent, memory, _ = TopK(share=0.5, error_feedback=False).client(update(-2.0, 2.0, 2.0, 2.0), {}, context())
    assert sent.vectors["update"].tolist() == [-2.0, 2.0, 0.0, 0.0]
    assert memory == {}


def test_what_rounding_takes_is_remembered_too() -> None:
    third = 1 / 3
    sent, memory, _ = TopK(share=1.0).client(update(third, 0.0, 0.0, 0.0), {}, context())
    rounded = float(torch.tensor(third, dtype=torch.float32))
    assert sent.vectors["update"][0] == rounded
    assert memory["error"][0] == torch.tensor(third - rounded, dtype=torch.float32)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_the_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(ValueError, match=rf"top_k\.share={share}: must be above 0 and at most 1$"):
        TopK(share=share)
