"""Models with fewer units."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flrl.aggregation import Aggregator, Mean, Median
from flrl.layout import ParameterLayout
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.transforms import Cast, Downlink, FederatedDropout, GradientNoise, LocalDP, Sign, Transform
from flrl.types import ClientUpdate
from tests.toys import Linear, fit, make_worker, setup_of
from tests.transforms.given import context
from tests.transforms.test_apply import SGD

LAYERS = {"net.0": "net.2"}


class Deep(Linear):
    """Two layers with ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def averaging(rounds: int = 1, aggregator: Aggregator | None = None, **transforms: Transform) -> FedAvg:
    everybody = AllClients()
    return FedAvg(
        rounds=rounds, sampler=everybody, server_optimizer=SGD, aggregator=aggregator or Mean(), transforms=transforms
    )


def test_rows_biases_and_columns_are_left_out_together() -> None:
    layout, dropout = ParameterLayout(Deep()), FederatedDropout(layers=LAYERS, share=0.3)
    where = context(layout=layout)
    got = layout.unflatten(dropout.received(torch.ones(layout.size), 3, where))
    units = got["net.0.bias"].bool()
    assert int(units.sum()) == 3  # of 8, rounded up
    assert torch.equal(got["net.0.weight"], units[:, None].float().expand(8, 5))
    assert torch.equal(got["net.2.weight"], units[None, :].float().expand(3, 8))
    assert got["net.2.bias"].all()
    drawn = {
        tuple(dropout.received(torch.ones(layout.size), client, context(layout=layout, round=round)).tolist())
        for client in range(5)
        for round in range(5)
    }
    assert len(drawn) > 15


def test_units_of_a_convolution_are_channels_and_blocks_of_a_dense_layer() -> None:
    layout = ParameterLayout(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(12, 2)))
    dropout = FederatedDropout(layers={"0": "1", "1": "3"}, share=0.5)
    got = layout.unflatten(dropout.received(torch.ones(layout.size), 0, context(layout=layout)))
    first, second = got["0.bias"], got["1.bias"]
    assert (int(first.sum()), int(second.sum())) == (2, 3)
    assert torch.equal(got["1.weight"], (second[:, None] * first[None, :])[:, :, None, None].expand(6, 4, 3, 3))
    assert torch.equal(got["3.weight"], second.repeat_interleave(2).expand(2, 12))


def test_updates_are_unbiased_over_the_draws() -> None:
    layout, dropout = ParameterLayout(Deep()), FederatedDropout(layers=LAYERS, share=0.5)
    v = torch.arange(1.0, layout.size + 1).double()
    total = torch.zeros_like(v)
    for round in range(400):
        update = ClientUpdate(3, 1.0, {"update": v}, {}, 1, payload={"update": 300})
        found, _, _ = dropout.client(update, {}, context(layout=layout, round=round))
        total += found.vectors["update"]
    assert found.payload == {"update": 4 * (4 * 5 + 4 + 3 * 4 + 3)}
    assert float((total / 400 / v - 1).abs().max()) < 4 / 400**0.5


def test_a_round_trains_models_without_these_units() -> None:
    """Plain SGD on the smaller net alone gives the same numbers: what is left out neither works nor learns."""
    dropout = FederatedDropout(layers=LAYERS, share=0.5)
    worker = make_worker(averaging(dropout=dropout), module=Deep(), sizes=(20,))
    before, layout = worker.model.vector.clone(), worker.model.layout
    state, history = fit(worker)
    small = 4 * (4 * 5 + 4 + 3 * 4 + 3)
    assert history[-1].metrics["comm/up_bytes"] == history[-1].metrics["comm/down_bytes"] == small
    shares = dropout.shares(0, context(layout=layout, client_id=0))
    sent = shares > 0
    change = (state.vector - before).double()
    assert not change[~sent].any()
    assert change[sent].abs().min() > 0 or int((change[sent] == 0).sum()) < int(sent.sum()) / 2

    class Small(Deep):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
            ParameterLayout(self)
            start = iter(before[sent].split([20, 4, 12, 3]))
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.copy_(next(start).view(parameter.shape))

    alone = make_worker(averaging(), module=Small(), sizes=(20,))
    start: Tensor = alone.model.vector.clone()
    trained = fit(alone)[0].vector - start
    torch.testing.assert_close((change * shares)[sent], trained.double(), rtol=1e-5, atol=1e-7)


def test_what_does_not_go_together_is_refused() -> None:
    def refused(message: str, **transforms: Any) -> None:
        with pytest.raises(ValueError, match=message):
            setup_of(Deep(), strategy=averaging(**transforms)).check()

    for layers in ({"net.0": "net.1"}, {"net.9": "net.2"}, {"net.2": "net.0"}):
        refused(
            r"federated_dropout\.layers=\{net\.\d: net\.\d\}: must be two layers", d=FederatedDropout(layers=layers)
        )
    for other in (Sign(), Downlink(codec=Cast())):
        refused(r"^strategy\.transforms\.other: encodes all", d=FederatedDropout(layers=LAYERS), other=other)
    for noise in (GradientNoise(std=1.0), LocalDP(clip=1.0, noise_multiplier=1.0)):
        refused(r"^strategy\.transforms\.other: fills the numbers", d=FederatedDropout(layers=LAYERS), other=noise)
        setup_of(Deep(), strategy=averaging(other=noise, d=FederatedDropout(layers=LAYERS))).check()
    with pytest.raises(ValueError, match=r"^strategy\.aggregator=Median: takes what federated_dropout has left out"):
        setup_of(Deep(), strategy=averaging(aggregator=Median(), d=FederatedDropout(layers=LAYERS))).check()
    with pytest.raises(ValueError, match=r"federated_dropout\.share=1\.0: must be above 0 and below 1$"):
        FederatedDropout(layers=LAYERS, share=1.0)
    with pytest.raises(ValueError, match=r"federated_dropout\.layers=\{\}: must name a layer at least$"):
        FederatedDropout(layers={})
