"""Scores, by hand."""

import math

import numpy as np
import pytest
import torch

from flrl.attacks import Finding, Inputs
from flrl.attacks.observe import Truth
from flrl.attacks.scoring import auc, clopper_pearson, matched, membership, score, ssim

INPUTS = Inputs((1, 1, 2), torch.float32, torch.tensor([[[-1.0]]]), torch.tensor([[[3.0]]]), 3)
TRUE = torch.tensor([[[[-1.0, 3.0]]], [[[1.0, 1.0]]]])  # (0, 1) and (0.5, 0.5) on the scale from 0 to 1


def truth(labels: list[int] | None = None, members: list[bool] | None = None) -> Truth:
    return Truth(TRUE, None if labels is None else torch.tensor(labels), np.array(members or []))


def test_errors_are_on_the_scale_from_0_to_1_after_the_best_assignment() -> None:
    found = torch.tensor([[[[1.0, 1.4]]], [[[-1.0, 2.6]]]])  # (0.5, 0.6) and (0, 0.9)
    numbers = score(Finding(inputs=found), truth(), INPUTS, seed=0)
    assert numbers == {
        "samples": 2,
        "reconstructed": 2,
        "mse": pytest.approx(0.005),
        "psnr": pytest.approx(-10 * math.log10(0.005)),
        "max_abs_error": pytest.approx(0.1),
    }


def test_the_assignment_is_the_best_for_all_together() -> None:
    """The first reconstruction is nearest to the first sample, and so is the second one, which needs it more."""
    inputs = Inputs((1,), torch.float32, torch.tensor(0.0), torch.tensor(1.0), None)
    rows, columns = matched(torch.tensor([[0.1], [0.0]]), torch.tensor([[0.0], [0.3]]), inputs)
    assert (rows.tolist(), columns.tolist()) == ([1, 0], [0, 1])
    rows, columns = matched(torch.tensor([[0.9], [0.3], [math.nan]]), torch.tensor([[0.3]]), inputs)
    assert (rows.tolist(), columns.tolist()) == ([1], [0])


def test_labels_count_as_often_as_they_occur_and_at_their_place() -> None:
    numbers = score(Finding(inputs=TRUE.flip(0), labels=torch.tensor([0, 1])), truth([0, 1]), INPUTS, seed=0)
    assert (numbers["mse"], numbers["label_accuracy"], numbers["label_accuracy_matched"]) == (0.0, 1.0, 0.0)
    assert score(Finding(labels=torch.tensor([2, 2])), truth([2, 1]), INPUTS, seed=0)["label_accuracy"] == 0.5
    counted = score(Finding(label_counts=torch.tensor([0, 2, 0])), truth([2, 1]), INPUTS, seed=0)
    assert (counted["label_accuracy"], counted["label_count_error"]) == (0.5, 1.0)


def test_an_exact_image_has_a_psnr_that_json_can_hold() -> None:
    assert score(Finding(inputs=TRUE), truth(), INPUTS, seed=0)["psnr"] == 200.0


def test_ssim_of_images_smaller_than_the_usual_window() -> None:
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert ssim(image, image) == pytest.approx(1.0, abs=1e-6)
    assert ssim(1 - image, image) < 0
    flat, bright = torch.full((1, 1, 7, 7), 0.25), torch.full((1, 1, 7, 7), 0.75)
    assert ssim(flat, bright) == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4), abs=1e-4)


def test_membership_by_hand() -> None:
    scores, members = np.array([4.0, 3.0, 1.0, 2.0, 1.0]), np.array([True, True, True, False, False])
    assert auc(scores[members], scores[~members]) == pytest.approx((2 + 2 + 0.5) / 6)
    numbers = membership(scores, members, seed=0)
    assert (numbers["auc"], numbers["members"], numbers["non_members"]) == (pytest.approx(0.75), 3, 2)
    assert numbers["tpr_at_fpr_0.01"] == numbers["tpr_at_fpr_0.001"] == pytest.approx(2 / 3)
    low, high = numbers["auc_interval"]
    assert 0 <= low < 0.75 < high <= 1
    assert membership(scores, members, seed=0) == numbers


def test_rates_are_taken_at_the_largest_threshold_that_keeps_false_positives_below() -> None:
    """Of 1,000 others 15 are above 0.2, ten above 0.5, one above 2."""
    outside = np.concatenate([np.zeros(985), np.full(5, 0.25), np.full(9, 1.0), [3.0]])
    scores = np.concatenate([outside, [4.0, 2.0, 0.5, 0.2]])
    numbers = membership(scores, np.arange(1004) >= 1000, seed=0)
    assert (numbers["tpr_at_fpr_0.001"], numbers["tpr_at_fpr_0.01"]) == (0.5, 0.75)


def test_the_interval_of_a_rate() -> None:
    """Clopper and Pearson's for 8 of 10 is 0.4439 to 0.9748; for 0 of n the upper end is 1 - 0.025^(1/n)."""
    assert clopper_pearson(8, 10) == [pytest.approx(0.44390, abs=1e-5), pytest.approx(0.97479, abs=1e-5)]
    assert clopper_pearson(0, 20) == [0.0, pytest.approx(1 - 0.025 ** (1 / 20))]
    assert clopper_pearson(20, 20) == [pytest.approx(0.025 ** (1 / 20)), 1.0]


def test_scores_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="all must be finite"):
        membership(np.array([1.0, math.nan]), np.array([True, False]), seed=0)
    with pytest.raises(ValueError, match="members and others"):
        membership(np.array([1.0, 2.0]), np.array([True, True]), seed=0)
