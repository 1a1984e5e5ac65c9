"""Cosines of updates with their aggregate: by hand, and of runs whose bits they do not change."""

import math
from functools import partial

import pytest
import torch

from flrl.aggregation import Mean, Median, RowMean, RowsReducer
from flrl.aggregation.drift import cosines
from flrl.aggregation.exact_sum import LIMIT
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.transforms import Transform
from tests.aggregation.updates import add, rejected, update
from tests.toys import fit, make_worker, setup_of

SGD = partial(torch.optim.SGD, lr=1.0)


def test_cosines_by_hand() -> None:
    """Of (3, 4), (-3, -4), (5, 0) and (0, 0) with (2, 0): 0.6, -0.6, 1, and none."""
    reducer = RowsReducer({"control": 1, "update": 2}, RowMean())
    for client, vector in enumerate(([3e-9, 4e-9], [-3.0, -4.0], [5.0, 0.0], [0.0, 0.0])):
        add(reducer, update(client, 10, control=[7.0], update=vector))
    found = cosines(reducer, torch.tensor([2.0, 0.0]).double())
    assert found == pytest.approx(
        {
            "updates/cosine_mean": 1 / 3,
            "updates/cosine_q10": -0.36,  # a fifth of the way from -0.6 to 0.6
            "updates/cosine_q50": 0.6,
            "updates/cosine_q90": 0.92,
        }
    )
    assert cosines(reducer, torch.zeros(2).double()) == {}


def test_the_mean_with_cosines_is_the_mean_and_leaves_out_the_same_updates() -> None:
    for aggregator in (Mean(), Mean(cosines=True)):
        reducer = aggregator.reducer({"update": 1}, total_weight=4)
        assert rejected(reducer, update(0, 2, update=[3 * LIMIT])) is not None
        assert rejected(reducer, update(0, 2, update=[math.nan])) is not None
        add(reducer, update(1, 1, update=[5.0]))
        add(reducer, update(2, 3, update=[1.0]))
        combined = aggregator.combine(reducer, {}, context := Of(4.0))  # type: ignore[arg-type]
        assert (combined.vectors["update"].tolist(), combined.total_weight) == ([2.0], 4.0)
        assert context.total_weight == 4


class Of:
    def __init__(self, total_weight: float) -> None:
        self.total_weight = total_weight


def test_a_run_reports_cosines_where_updates_are_kept_and_has_the_same_bits() -> None:
    found = []
    for aggregator in (Mean(), Mean(cosines=True), Median()):
        worker = make_worker(FedAvg(rounds=2, sampler=AllClients(), server_optimizer=SGD, aggregator=aggregator))
        _, history = fit(worker)
        found.append(history)
        kept = [name for name in history[-1].metrics if name.startswith("updates/cosine")]
        assert len(kept) == (0 if found[1:] == [] else 4)
    assert [record.digest for record in found[0]] == [record.digest for record in found[1]]
    mean, lowest = (found[1][-1].metrics[f"updates/cosine_{name}"] for name in ("mean", "q10"))
    assert 0 < lowest <= mean <= 1


class Hiding(Transform):
    hides_updates = True


def test_cosines_of_hidden_updates_are_refused() -> None:
    options = {"rounds": 1, "sampler": AllClients(), "server_optimizer": SGD, "transforms": {"masks": Hiding()}}
    setup_of(strategy=FedAvg(**options)).check()
    with pytest.raises(ValueError, match=r"^strategy\.aggregator\.cosines=true: masks hides updates from the server"):
        setup_of(strategy=FedAvg(**options, aggregator=Mean(cosines=True))).check()
