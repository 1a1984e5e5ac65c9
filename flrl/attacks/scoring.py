"""Scores a finding by the truth: numbers between an attack's output and what the clients have really trained on."""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta, rankdata
from sklearn.metrics import roc_curve
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from flrl.attacks.base import Finding, Inputs
from flrl.attacks.observe import Truth

FALSE_POSITIVE_RATES = (0.01, 0.001)
_CONFIDENCE = 0.95
_RESAMPLES = 1000
_PSNR_MOST = 200.0

Number = float | int | list[float]


def score(finding: Finding, truth: Truth, inputs: Inputs, *, seed: int) -> dict[str, Number]:
    """All numbers that apply to a finding, by their names in `result.json`.

    Args:
        finding: what the attack has found.
        truth: what the clients have trained on.
        inputs: what samples look like.
        seed: of the bootstrap.
    """
    numbers: dict[str, Number] = {"samples": len(truth.inputs)}
    if finding.inputs is not None and inputs.dtype.is_floating_point:
        numbers |= reconstruction(finding.inputs, truth.inputs, inputs)
    if finding.labels is not None and truth.labels is not None:
        numbers["label_accuracy"] = overlap(counts(finding.labels), counts(truth.labels))
        if finding.inputs is not None and len(finding.labels) == len(finding.inputs):
            found, true = matched(finding.inputs, truth.inputs, inputs)
            numbers["label_accuracy_matched"] = float((finding.labels[found] == truth.labels[true]).double().mean())
    if finding.label_counts is not None and truth.labels is not None:
        true_counts = counts(truth.labels, len(finding.label_counts))
        numbers["label_count_error"] = float((finding.label_counts.double() - true_counts).abs().sum()) / len(
            truth.labels
        )
        numbers.setdefault("label_accuracy", overlap(finding.label_counts.double(), true_counts))
    if finding.scores is not None:
        numbers |= membership(finding.scores.numpy(), truth.members, seed=seed)
    return numbers


# Reconstructions.


def unit(samples: Tensor, inputs: Inputs) -> Tensor:
    """Samples on the scale on which the smallest input is 0 and the largest 1, float64."""
    low, high = inputs.low.double(), inputs.high.double()
    return (samples.double() - low) / (high - low)


def matched(found: Tensor, true: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The assignment of reconstructions to true samples with the least sum of squared errors: two index tensors.

    Each is assigned at most once; where there are more of one than of the other, the rest stays without.
    """
    a, b = (unit(part, inputs).flatten(1) for part in (found, true))
    costs = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / a.shape[1]
    costs = torch.nan_to_num(costs, nan=1e30, posinf=1e30)
    rows, columns = linear_sum_assignment(costs.numpy())
    order = np.argsort(columns)
    return torch.from_numpy(rows[order]), torch.from_numpy(columns[order])


def reconstruction(found: Tensor, true: Tensor, inputs: Inputs) -> dict[str, Number]:
    """Errors on the scale from 0 to 1, means over the pairs that `matched` gives.

    Args:
        found: reconstructions `[n, ...]`.
        true: `[m, ...]`.
        inputs: what samples look like.

    Returns:
        `mse`, `psnr` (decibels), `max_abs_error`, `reconstructed` (how many there are), and `ssim` for images.
    """
    rows, columns = matched(found, true, inputs)
    a, b = unit(found, inputs)[rows], unit(true, inputs)[columns]
    errors = (a - b).square().flatten(1).mean(1)
    numbers: dict[str, Number] = {
        "mse": float(errors.mean()),
        "psnr": float((-10 * errors.log10()).clamp(max=_PSNR_MOST).mean()),
        "max_abs_error": float((a - b).abs().max()),
        "reconstructed": len(found),
    }
    if a.ndim == 4 and min(a.shape[2:]) >= 3:
        numbers["ssim"] = ssim(a, b)
    return numbers


def ssim(found: Tensor, true: Tensor) -> float:
    """Structural similarity of images `[n, channels, height, width]` with values from 0 to 1, the mean over them.

    Wang et al., IEEE TIP 2004: a Gaussian window of 11 pixels and standard deviation 1.5; for smaller images the
    largest odd window that fits.
    """
    size = min(11, *(side if side % 2 else side - 1 for side in found.shape[2:]))
    value = structural_similarity_index_measure(
        found.double(), true.double(), data_range=1.0, gaussian_kernel=size == 11, kernel_size=size
    )
    return float(value)  # type: ignore[arg-type]


# Labels.


def counts(labels: Tensor, num_classes: int = 0) -> Tensor:
    """Samples of each class, float64."""
    return torch.bincount(labels, minlength=num_classes).double()


def overlap(found: Tensor, true: Tensor) -> float:
    """The share of the true samples whose class was found, each as often as it occurs; counts of each class.

    Example:
        >>> overlap(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0, 2.0]))
        0.5
    """
    size = max(len(found), len(true))
    found, true = (torch.nn.functional.pad(part, (0, size - len(part))) for part in (found, true))
    return float(torch.minimum(found, true).sum() / true.sum())


# Membership.


def membership(scores: np.ndarray, members: np.ndarray, *, seed: int) -> dict[str, Number]:
    """Area under the ROC curve and true positive rates at low false positive rates, with intervals of 95 %.

    Args:
        scores: higher for those that seem to be members, `[n]`.
        members: who is one, bool `[n]`.
        seed: of the bootstrap for the area's interval. Those of rates are Clopper and Pearson's, for the threshold.

    Raises:
        ValueError: all or none are members, or a score is no number.
    """
    if not 0 < members.sum() < len(members):
        raise ValueError("candidates: there must be members and others among them")
    if not np.isfinite(scores).all():
        raise ValueError("scores of candidates: all must be finite")
    false, true, _ = roc_curve(members, scores, drop_intermediate=False)
    inside, outside = scores[members], scores[~members]
    rng = np.random.default_rng(seed)
    areas = [auc(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(_RESAMPLES)]
    tails = [50 * (1 - _CONFIDENCE), 50 * (1 + _CONFIDENCE)]
    numbers: dict[str, Number] = {
        "auc": auc(inside, outside),
        "auc_interval": [float(bound) for bound in np.percentile(areas, tails)],
        "members": int(members.sum()),
        "non_members": int((~members).sum()),
    }
    for rate in FALSE_POSITIVE_RATES:
        reached = float(true[false <= rate].max())
        numbers[f"tpr_at_fpr_{rate:g}"] = reached
        numbers[f"tpr_at_fpr_{rate:g}_interval"] = clopper_pearson(round(reached * len(inside)), len(inside))
    return numbers


def auc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The probability that a member's score is above a non-member's; ties count half.

    Example:
        >>> auc(np.array([3.0, 1.0]), np.array([2.0, 1.0]))
        0.625
    """
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    least = len(inside) * (len(inside) + 1) / 2
    return float((ranks.sum() - least) / (len(inside) * len(outside)))


def clopper_pearson(successes: int, trials: int) -> list[float]:
    """The exact interval of 95 % of a rate, from the number of successes (Clopper and Pearson, Biometrika 1934)."""
    tail = (1 - _CONFIDENCE) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return [low, high]


def numbers_of(values: Mapping[str, Number]) -> dict[str, float]:
    """The plain numbers among values, for dashboards."""
    return {name: float(value) for name, value in values.items() if not isinstance(value, list)}
