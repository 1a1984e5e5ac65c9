"""The coordinatewise trimmed mean by hand."""

import pytest

from flrl.aggregation import TrimmedMean
from tests.aggregation.updates import of_rows


def test_a_quarter_of_four_rows_is_left_out_at_each_end() -> None:
    assert of_rows(TrimmedMean(share=0.25), [1.0, -8.0], [90.0, 4.0], [3.0, 2.0], [2.0, 0.0]) == [2.5, 1.0]


def test_the_number_left_out_is_rounded_down() -> None:
    """A third of two rows is none; 0.4 of three is one, which leaves the median."""
    assert of_rows(TrimmedMean(share=1 / 3), [1.0], [4.0]) == [2.5]
    assert of_rows(TrimmedMean(share=0.4), [1.0], [90.0], [4.0]) == [4.0]


def test_without_a_share_it_is_the_mean_of_clients_that_count_equally() -> None:
    assert of_rows(TrimmedMean(share=0.0), [1.0, 0.0], [5.0, 6.0], [3.0, 9.0]) == [3.0, 5.0]


@pytest.mark.parametrize("share", [-0.1, 0.5, float("nan")])
def test_the_share_is_below_a_half(share: float) -> None:
    message = rf"^strategy\.aggregator\.share={share}: must be at least 0 and below 0\.5$"
    with pytest.raises(ValueError, match=message):
        TrimmedMean(share=share)
