"""Rules on rows: documented values, and what each of them holds to. A new one joins by being listed."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flrl.aggregation import (
    ARC,
    FLAME,
    MDA,
    NNM,
    Before,
    Bucketing,
    Bulyan,
    CenteredClipping,
    Clip,
    DnC,
    FLTrust,
    FoolsGold,
    GeometricMedian,
    Krum,
    Meamed,
    MeanOfMedians,
    Median,
    MultiKrum,
    NormBound,
    Phocas,
    RowMean,
    RowRule,
    Rows,
    Ruled,
    SignMajority,
    TrimmedMean,
)
from flrl.aggregation.around import nearest_mean
from flrl.aggregation.foolsgold import foolsgold_weights
from flrl.aggregation.mda import smallest_without
from flrl.aggregation.ordering import _KEY_COLUMNS, own_order
from tests.aggregation.updates import of_rows
from tests.toys import setup_of

X = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]


@dataclass(frozen=True)
class Kind:
    """A rule, and what it holds to.

    Attributes:
        rule: bearing one malicious client where it bears any.
        moves: adding a vector to all rows adds it to the result.
        robust: a malicious row, however large, leaves the result near the honest ones.
    """

    rule: RowRule
    moves: bool = True
    robust: bool = True


class Rooted(FLTrust):
    """FLTrust whose server always finds the same update."""

    needs_root = False

    def rule(self, rows: Rows) -> Ruled:
        size = rows.values.shape[1]
        return super().rule(replace(rows, root=torch.tensor([0.25, -1.0, 0.5, 0.0] * size).double()[:size]))


KINDS = {
    "row mean": Kind(RowMean(), robust=False),
    "mean of medians": Kind(MeanOfMedians(num_malicious=1), moves=False),  # its groups are drawn of rows in their order
    "median": Kind(Median()),
    "trimmed mean": Kind(TrimmedMean(num_malicious=1)),
    "trimmed mean, share": Kind(TrimmedMean(share=0.2)),
    "meamed": Kind(Meamed(num_malicious=1)),
    "phocas": Kind(Phocas(num_malicious=1)),
    "krum": Kind(Krum(num_malicious=1)),
    "multi-krum": Kind(MultiKrum(num_malicious=1)),
    "bulyan": Kind(Bulyan(num_malicious=1)),
    "mda": Kind(MDA(num_malicious=1)),
    "geometric median": Kind(GeometricMedian()),
    "dnc": Kind(DnC(num_malicious=1)),
    "centred clipping": Kind(CenteredClipping(radius=2.0), moves=False, robust=False),
    "norm bound": Kind(NormBound(max_norm=2.0), moves=False, robust=False),
    "fltrust": Kind(Rooted(), moves=False),
    "flame": Kind(FLAME(noise=0.0), moves=False),
    "foolsgold": Kind(FoolsGold(), moves=False, robust=False),
    "sign majority": Kind(SignMajority(), moves=False, robust=False),
    "nnm, trimmed mean": Kind(TrimmedMean(num_malicious=1, before=NNM(num_malicious=1))),
    "buckets, median": Kind(Median(before=Bucketing(size=2))),
    "arc, geometric median": Kind(GeometricMedian(before=ARC(num_malicious=1)), moves=False),
    "clip, median": Kind(Median(before=Clip(max_norm=3.0)), moves=False),
}
every = pytest.mark.parametrize("name", KINDS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Median(), [4, 5, 6]),
        (TrimmedMean(num_malicious=1), [4, 5, 6]),
        (CenteredClipping(), [4, 5, 6]),
        (GeometricMedian(), [4, 5, 6]),
        (Krum(num_malicious=1), [1, 2, 3]),
        (MultiKrum(num_malicious=1), [2.5, 3.5, 4.5]),
        (MDA(num_malicious=1), [2.5, 3.5, 4.5]),
        (RowMean(), [4, 5, 6]),
        (MeanOfMedians(num_malicious=1), [4, 5, 6]),
        (Meamed(num_malicious=1), [2.5, 3.5, 4.5]),
        (SignMajority(), [1, 1, 1]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RowRule) else "",
)
def test_documented_values(rule: RowRule, expected: list[float]) -> None:
    """Those that ByzFL 0.0.11 documents for these rows."""
    assert rule(X).tolist() == pytest.approx(expected, rel=1e-15)


def before(kind: Before, rows: list[list[float]], weights: list[float] | None = None) -> Rows:
    values = torch.tensor(rows, dtype=torch.float64)
    own = torch.ones(len(rows)).double() if weights is None else torch.tensor(weights).double()
    return kind(Rows(values, own, range(len(rows)), {}, torch.Generator().manual_seed(0)))


def test_rows_are_mixed_with_their_nearest() -> None:
    assert before(NNM(num_malicious=1), X).values.tolist() == [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]]
    assert before(NNM(num_malicious=0), X).values.tolist() == [[4.0, 5.0, 6.0]] * 3


def test_buckets_are_means_that_weigh_what_their_rows_weigh() -> None:
    found = before(Bucketing(size=2), [[1.0], [2.0], [4.0], [8.0], [16.0]], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert len(found.values) == len(found.weights) == 3
    assert float(found.weights.sum()) == 15.0
    assert sorted(found.weights.tolist())[-1] <= 9.0
    equal = before(Bucketing(size=2), [[1.0], [2.0], [4.0], [8.0], [16.0]])
    assert sorted(equal.weights.tolist()) == [1.0, 2.0, 2.0]  # the last bucket has one row
    assert float(equal.weights @ equal.values[:, 0]) == 31.0


@pytest.mark.parametrize("kind", [Bucketing(size=2), NNM(num_malicious=1), Clip(max_norm=1.0), ARC(num_malicious=1)])
def test_rows_of_the_caller_are_not_changed(kind: Before) -> None:
    """Whether they lie in their own order or not."""
    for rows in (
        torch.tensor([[3.0], [4.0], [5.0], [60.0]]).double(),
        torch.tensor([[60.0], [4.0], [5.0], [3.0]]).double(),
    ):
        copy = rows.clone()
        RowMean(before=kind)(rows)
        assert torch.equal(rows, copy)


def test_the_longest_rows_are_clipped() -> None:
    """Of norms 3, 4, 5, 60, with f = 1, floor(2 / 4 * 3) = 1 row is clipped, to the norm 5."""
    rows = [[3.0, 0.0], [0.0, 4.0], [3.0, 4.0], [36.0, 48.0]]
    assert before(ARC(num_malicious=1), rows).values.tolist() == [[3.0, 0.0], [0.0, 4.0], [3.0, 4.0], [3.0, 4.0]]
    assert before(ARC(num_malicious=0), rows).values.tolist() == rows
    assert before(Clip(max_norm=4.0), rows[:3]).values.tolist() == [[3.0, 0.0], [0.0, 4.0], [2.4000000000000004, 3.2]]


def test_krum_by_hand() -> None:
    """f = 1: squared distances from the three nearest others: 1 has 1 + 1 + 2.25, 2 has 0.25 + 1 + 4.

    From the two nearest, as in the first paper, 1 has 2 and 2 has 1.25.
    """
    assert Krum(num_malicious=1)([[9.0], [0.0], [1.0], [2.0], [2.5]]).tolist() == [1.0]


def test_bulyan_by_hand() -> None:
    """Seven rows, f = 1: five are chosen, the far ones are not; the three numbers nearest to their median are left."""
    rows = [[0.0], [1.0], [2.0], [3.0], [6.0], [50.0], [-9.0]]
    assert Bulyan(num_malicious=1)(rows).tolist() == [2.0]
    with pytest.raises(ValueError, match="Bulyan of 4 rows cannot bear 1 malicious ones"):
        Bulyan(num_malicious=1)(rows[:4])


def test_phocas_by_hand() -> None:
    """Of 0, 1, 2, 9 the trimmed mean is 1.5; the three nearest are 0, 1, 2."""
    assert Phocas(num_malicious=1)([[0.0], [1.0], [2.0], [9.0]]).tolist() == [1.0]
    # Of 1, 4, 7, 7, 12 it is 6, from which 12 is farthest; from the median, 7, it would be 1.
    assert Phocas(num_malicious=1)([[1.0], [4.0], [7.0], [7.0], [12.0]]).tolist() == [4.75]
    column = torch.tensor([[0.0], [1.0], [5.0], [6.0], [7.0]]).double()
    assert nearest_mean(column, torch.tensor([5.0]).double(), 3).tolist() == [6.0]


def test_centred_clipping_remembers_its_centre() -> None:
    """From 0 with radius 1: rows 0.5 and 9 give (0.5 + 1) / 2; from there 9 is clipped to 1.75, and 0.5 is near."""
    rule, rows = CenteredClipping(radius=1.0), [[0.5], [9.0]]
    assert rule(rows).tolist() == [0.75]
    assert rule(rows, state={"centre": torch.tensor([0.75]).double()}).tolist() == [0.75 + (-0.25 + 1) / 2]
    assert CenteredClipping(radius=1.0, iterations=2)(rows).tolist() == [1.125]


def test_norms_are_bounded_and_noise_follows_the_seed() -> None:
    rows = [[3.0, 4.0], [0.0, 1.0]]
    assert NormBound(max_norm=1.0)(rows, [1.0, 3.0]).tolist() == pytest.approx([0.15, 0.95])
    noisy = [NormBound(max_norm=1.0, std=0.5)(rows, [1.0, 3.0], seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    many = NormBound(max_norm=1.0, std=0.5)(torch.zeros(2, 100_000))
    assert float(many.std()) == pytest.approx(0.5, rel=0.02)


def test_votes_by_hand() -> None:
    assert SignMajority()([[1.0, -2.0, 0.0], [5.0, 3.0, 0.0], [-0.1, -9.0, 4.0]]).tolist() == [1.0, -1.0, 1.0]
    assert SignMajority()([[1.0], [-2.0]]).tolist() == [0.0]


def test_sybils_lose_their_weight() -> None:
    """Two clients that always send the same are taken for one adversary's; who points elsewhere keeps its weight."""
    history = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert foolsgold_weights(history).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert FoolsGold()(history).tolist() == [0.0, 0.5, 0.5]
    rows = [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]
    assert FoolsGold()(rows).tolist() == [0.0, pytest.approx(1 / 3), 0.0]
    alike = torch.tensor([5.0, 0.0, 0.0])  # what the first two have sent before
    assert FoolsGold()(rows, state={"0": alike, "1": alike}).tolist() == [0.0, 0.0, -1.0]
    # A cosine of 1/2 leaves logit(1/2) + 1/2.
    half = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.75**0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert foolsgold_weights(half).tolist() == pytest.approx([0.5, 0.5, 1.0])
    # Who is like a sybil by 0.6 is pardoned to 0.6 * 0.6: logit(0.64) + 0.5 is above 1, logit(0.4) + 0.5 is 0.09.
    near = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert foolsgold_weights(near).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert FoolsGold()([[1.0], [1.0]]).tolist() == [0.0]


def test_medians_of_groups_are_averaged() -> None:
    """Of two groups of three one has both nines, or none has: the mean of their medians is 4.5 or 0."""
    rule, rows = MeanOfMedians(num_malicious=1), [[0.0], [0.0], [0.0], [0.0], [9.0], [9.0]]
    assert {float(rule(rows, seed=seed)) for seed in range(12)} == {0.0, 4.5}
    assert rule(rows[1:]).tolist() == [0.0]  # one group
    assert MeanOfMedians(num_malicious=0)(rows).tolist() == [3.0]
    with pytest.raises(ValueError, match="MeanOfMedians of 2 rows cannot bear 1 malicious ones"):
        rule(rows[:2])


def test_rows_by_their_weights() -> None:
    assert RowMean()([[1.0, 0.0], [4.0, 3.0]], [2.0, 1.0]).tolist() == [2.0, 1.0]


def test_flame_clips_the_majority_to_the_median_norm() -> None:
    """Of norms 1, 2, 3, 4, 9, 9 it is 3.5: of the four that point the same way, the mean of 1, 2, 3 and 3.5."""
    rows = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [-9.0, 0.0], [0.0, 9.0]]
    rule = FLAME(noise=0.0)
    assert rule(rows).tolist() == pytest.approx([2.375, 0.0], rel=1e-15)
    values = torch.tensor(rows, dtype=torch.float64)
    found = rule.ruled(values, Rows(values, torch.ones(6).double(), range(6), {}, torch.Generator()))
    assert found.kept is not None
    assert found.kept.tolist() == [True] * 4 + [False] * 2
    assert rule([[1.0, 0.0], [-3.0, 0.0]]).tolist() == pytest.approx([-0.5, 0.0], rel=1e-15)  # nobody is the majority
    assert rule([[0.0, 0.0]] * 3).tolist() == [0.0, 0.0]
    noisy = FLAME(noise=0.5)(torch.ones(5, 10_000)) - 1
    assert float(noisy.std()) == pytest.approx(50.0, rel=0.03)  # half of the norm, 100
    assert torch.equal(noisy, FLAME(noise=0.5)(torch.ones(5, 10_000)) - 1)
    for noise in (-1.0, float("inf")):
        with pytest.raises(ValueError, match=rf"strategy.aggregator.noise={noise}: must be at least 0 and finite"):
            FLAME(noise=noise)


def test_equal_beginnings_do_not_make_rows_equal() -> None:
    """Rows are ordered by all their numbers and their weights where their first ones are the same."""
    rows = torch.cat([torch.ones(4, _KEY_COLUMNS), torch.tensor([[0.1], [0.2], [0.3], [0.1]])], dim=1).double()
    weights = torch.tensor([1.0, 1.0, 1.0, 2.0]).double()
    order = own_order(list(rows), weights, range(4))
    for other in itertools.permutations(range(4)):
        again = own_order([rows[place] for place in other], weights[list(other)], range(4))
        assert [other[place] for place in again] == order


def test_the_geometric_median_by_hand() -> None:
    """Of three points on a line it is the middle one; one that weighs more than half of all is it."""
    rule = GeometricMedian(iterations=100)
    assert rule([[0.0], [1.0], [9.0]]).tolist() == pytest.approx([1.0], abs=1e-5)
    assert rule([[0.0], [1.0], [9.0]], [1.0, 1.0, 5.0]).tolist() == pytest.approx([9.0], abs=1e-3)
    corners = [[0.0, 0.0], [2.0, 0.0], [1.0, 3.0**0.5]]  # equilateral: the centre
    assert rule(corners).tolist() == pytest.approx([1.0, 3.0**0.5 / 3], abs=1e-6)


def test_the_least_diameter_is_found() -> None:
    """Against all subsets, for up to nine rows."""
    rng = np.random.default_rng(0)
    for count, most in itertools.product((3, 5, 9), (0, 1, 2)):
        if count <= 2 * most:
            continue
        for _ in range(20):
            rows = torch.from_numpy(rng.integers(-3, 4, (count, 2))).double()
            distances = torch.cdist(rows, rows).square().round()
            left = [place for place in range(count) if place not in smallest_without(distances, most)]
            assert len(left) == count - most
            found = distances[left][:, left].max()
            sets = [list(own) for own in itertools.combinations(range(count), count - most)]
            assert found == min(distances[own][:, own].max() for own in sets)


# What all rules do.

numbers = st.integers(-40, 40).map(lambda number: number / 8)


def rows_of(data: st.DataObject, least: int = 7) -> Tensor:
    count, size = data.draw(st.integers(least, 9)), data.draw(st.integers(1, 4))
    flat = data.draw(st.lists(numbers, min_size=count * size, max_size=count * size))
    return torch.tensor(flat, dtype=torch.float64).view(count, size)


@every
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_of_rows_does_not_matter_to_the_bit(name: str, data: st.DataObject) -> None:
    rows, rule = rows_of(data), KINDS[name].rule
    order = data.draw(st.permutations(range(len(rows))))
    weights = torch.arange(1.0, len(rows) + 1)
    assert torch.equal(rule(rows[order], weights[order]), rule(rows, weights))


@every
def test_equal_rows_give_that_row(name: str) -> None:
    row = torch.tensor([0.25, -1.0, 0.5, 0.0], dtype=torch.float64)
    expected = {"sign majority": row.sign(), "foolsgold": torch.zeros(4)}.get(name, row)
    assert torch.allclose(KINDS[name].rule(row.repeat(7, 1)), expected.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.moves])
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_is_added_to_all_rows_is_added_to_the_result(name: str, data: st.DataObject) -> None:
    """Of rows that are far from equally good, so that rounding chooses nothing."""
    seed = data.draw(st.integers(0, 10**6))
    rows = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    shift = torch.tensor([3.0, -1.5, 0.25], dtype=torch.float64)
    rule = KINDS[name].rule
    if rule.before is None or not isinstance(rule.before, Bucketing):  # whose buckets are drawn of rows in their order
        torch.testing.assert_close(rule(rows + shift), rule(rows) + shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.robust])
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_one_row_however_long_leaves_the_result_among_the_others(name: str, data: st.DataObject) -> None:
    """Within the radius of the honest rows around their mean; FLTrust's is no longer than the server's own update."""
    seed, sign = data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from([1.0, -1.0]))
    honest = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for bad in (1e3, 1e30):
        found = KINDS[name].rule(torch.cat([honest, torch.full((1, 3), sign * bad, dtype=torch.float64)]))
        centre, radius = honest.mean(dim=0), float((honest - honest.mean(dim=0)).norm(dim=1).max())
        if isinstance(KINDS[name].rule, Rooted):
            centre, radius = torch.zeros(3).double(), (0.25**2 + 1.0 + 0.5**2) ** 0.5
        assert float((found - centre).norm()) <= radius + 1e-9


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (TrimmedMean(num_malicious=1), 3),
        (Meamed(num_malicious=1), 3),
        (Krum(num_malicious=1), 5),
        (MultiKrum(num_malicious=1), 5),
        (Bulyan(num_malicious=1), 7),
        (MDA(num_malicious=1), 3),
        (DnC(num_malicious=1), 3),
        (MeanOfMedians(num_malicious=1), 3),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RowRule) else "",
)
def test_too_many_malicious_clients_are_refused_before_the_first_round(rule: RowRule, least: int) -> None:
    rule.check(setup_of(sizes=(10,) * least))
    message = (
        rf"num_malicious=1: {type(rule).__name__} needs at least {least} clients in a round \(.*\), and {least - 1}"
    )
    with pytest.raises(ValueError, match=message):
        rule.check(setup_of(sizes=(10,) * (least - 1)))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            Krum(num_malicious=1, before=Bucketing(size=2)),
            r"5 clients .*, and 7 take part, .* Bucketing makes 4",
        ),
        (
            Median(before=NNM(num_malicious=4)),
            r"before.num_malicious=4: NNM needs at least 9 .*, and 7 take part",
        ),
        (FoolsGold(before=Bucketing(size=2)), r"before: FoolsGold needs each client's own row, not Bucketing"),
    ],
)
def test_what_comes_before_a_rule_counts_for_its_bound(rule: RowRule, message: str) -> None:
    rule.check(setup_of(sizes=(10,) * 9)) if not isinstance(rule, FoolsGold) else None
    with pytest.raises(ValueError, match=message):
        rule.check(setup_of(sizes=(10,) * 7))


def test_a_coordinatewise_rule_can_have_no_state() -> None:
    class Counting(RowRule):
        coordinatewise = True

        def __init__(self) -> None:  # `before` is None for a class that does not say so
            pass

        def rule(self, rows: Rows) -> Ruled:
            return Ruled(rows.values[0], state={"seen": rows.values[0]})

    with pytest.raises(TypeError, match=r"Counting is coordinatewise, .* can have no state"):
        of_rows(Counting(), [1.0], [2.0])


@pytest.mark.parametrize("bad", [1e77, 1e100, -1e150])
def test_dnc_leaves_out_rows_whose_scores_would_overflow(bad: float) -> None:
    honest = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([honest, torch.full((1, 4), bad, dtype=torch.float64)])
    torch.testing.assert_close(DnC(num_malicious=1)(rows), honest.mean(dim=0))


@pytest.mark.parametrize(
    ("rows", "weights", "message"),
    [
        ([], None, r"rows: must be \[n, d\] with n at least 1, not \[0\]"),
        ([1.0, 2.0], None, r"rows: must be \[n, d\] with n at least 1, not \[2\]"),
        ([[1.0], [2.0]], [1.0], "weights: must be 2 positive numbers"),
        ([[1.0], [2.0]], [1.0, 0.0], "weights: must be 2 positive numbers"),
        ([[1.0], [2.0]], [1.0, float("inf")], "weights: must be 2 positive numbers"),
    ],
)
def test_plain_rows_and_weights_that_are_none(rows: list[Any], weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Median()(rows, weights)


def test_a_number_of_malicious_clients_is_whole() -> None:
    with pytest.raises(ValueError, match=r"num_malicious=1.5: must be a whole number, at least 0"):
        Krum(num_malicious=1.5)  # type: ignore[arg-type]


def test_how_many_updates_are_enough() -> None:
    def least(rule: RowRule) -> int:
        return next(number for number in range(1, 99) if rule.enough(number))

    assert [least(Krum(num_malicious=f)) for f in (0, 1, 2)] == [1, 5, 7]
    assert [least(Bulyan(num_malicious=f)) for f in (1, 2)] == [7, 11]
    assert [least(TrimmedMean(num_malicious=2)), least(TrimmedMean(share=0.2)), least(Median())] == [5, 1, 1]
    # Buckets of two make five rows of nine updates; nearest-neighbour mixing needs an honest majority itself.
    assert least(Krum(num_malicious=1, before=Bucketing(size=2))) == 9
    assert least(Median(before=NNM(num_malicious=3))) == 7
