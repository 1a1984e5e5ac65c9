"""The model that clients are sent, encoded."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flrl.adversaries import Adversary, Threat
from flrl.aggregation import EveryUpdate
from flrl.layout import ParameterLayout
from flrl.sampling import AllClients
from flrl.scheduling import Buffered, Synchronous
from flrl.seeding import SERVER
from flrl.strategies import CFL, FedAvg, Scaffold
from flrl.transforms import Cast, Compressor, Downlink, Eden, Integers, RandomK, Sign, TopK
from flrl.transforms.apply import on_broadcast
from flrl.types import Broadcast
from tests.toys import Linear, fit, make_worker, setup_of
from tests.transforms.test_apply import SGD

LAYOUT = ParameterLayout(Linear().net)


def averaging(rounds: int = 3, strategy: Any = FedAvg, **transforms: Any) -> Any:
    return strategy(rounds=rounds, sampler=AllClients(), server_optimizer=SGD, transforms=transforms)


def sent(down: Downlink, vector: torch.Tensor, variables: Any = None, round: int = 1) -> Broadcast:
    broadcast = Broadcast(round, vector, 1.0, payload={"vector": 72, "control": 5})
    return on_broadcast({"down": down}, broadcast, variables or {}, LAYOUT, 0)


def test_clients_get_what_the_buffer_decodes_to() -> None:
    vector = torch.randn(18, generator=torch.Generator().manual_seed(0))
    down = Downlink(codec=Integers(bits=8), error_feedback=False)
    found = sent(down, vector)
    assert found.payload == {"vector": len(found.encoded["vector"]), "control": 5}
    assert torch.equal(down.decode(found.encoded["vector"], LAYOUT), found.vector)
    assert found.vector.dtype == torch.float32
    assert 0 < float((found.vector - vector).abs().max()) <= float(vector.abs().max()) / 127
    assert found.kept == {}
    assert torch.equal(sent(down, vector).vector, found.vector)
    assert not torch.equal(sent(down, vector, round=2).vector, found.vector)


@pytest.mark.parametrize("codec", [TopK(share=0.3), Sign(), Integers(bits=4, per=18), Cast()])
def test_the_server_sends_later_what_it_has_not_sent(codec: Compressor) -> None:
    total, taken, variables = np.zeros(18), np.zeros(18), {}
    for round in range(6):
        vector = torch.randn(18, generator=torch.Generator().manual_seed(round))
        found = sent(Downlink(codec=codec), vector, variables, round)
        total, taken, variables = total + vector.double().numpy(), taken + found.vector.double().numpy(), found.kept
    assert list(variables) == ["transforms/down/error"]
    np.testing.assert_allclose(taken + variables["transforms/down/error"].numpy(), total, atol=1e-6)
    assert np.abs(taken - total).max() > 1e-4


def test_rounds_with_an_encoded_model() -> None:
    """Clients train from what they were sent; the server steps its own model, and a resumed run knows the error."""
    down = {"down": Downlink(codec=Integers(bits=8)), "up": TopK(share=0.5)}
    worker = make_worker(averaging(**down))
    state, history = fit(worker)
    plain = fit(make_worker(averaging(up=TopK(share=0.5))))[1]
    assert "transforms/down/error" in state.variables
    assert [record.digest for record in history] != [record.digest for record in plain]
    bytes = [record.metrics["comm/down_bytes"] for record in history]
    assert all(0 < number <= 3 * (4 + 1 + 18) for number in bytes)
    assert abs(history[-1].metrics["train/loss"] - plain[-1].metrics["train/loss"]) < 0.02
    first, _ = fit(make_worker(averaging(1, **down)))
    again, _ = fit(make_worker(averaging(**down)), state=first)
    assert torch.equal(again.vector, state.vector)
    exact, _ = fit(make_worker(averaging(down=Downlink(codec=TopK(share=1.0)))))
    assert torch.equal(exact.vector, fit(make_worker(averaging()))[0].vector)
    control = averaging(strategy=Scaffold, down=Downlink(codec=Cast()))
    assert fit(make_worker(control))[1][-1].metrics["comm/down_bytes"] == 3 * (2 * 18 + 4 * 18)


class Lying(Adversary):
    """A server that sends zeros."""

    def broadcast(self, broadcast: Broadcast, context: Any) -> Broadcast:
        return replace(broadcast, vector=torch.zeros_like(broadcast.vector))


def test_a_model_that_was_tampered_with_is_not_the_buffers() -> None:
    found = sent(Downlink(codec=Cast()), torch.ones(18))
    assert Threat(Lying(clients=[0]), (0,), 0, None).sent(found, LAYOUT).encoded == {}


def test_what_does_not_go_together_is_refused() -> None:
    def refused(message: str, strategy: Any = FedAvg, schedule: Any = None, **transforms: Any) -> None:
        made = partial(strategy, schedule=schedule or Synchronous())
        setup = setup_of(Linear(), strategy=averaging(strategy=made, **transforms))
        with pytest.raises(ValueError, match=message):
            transforms["down"].check(setup)

    down = Downlink(codec=Cast())
    refused(r"^strategy\.transforms\.other: the model is encoded once", down=down, other=Downlink(codec=Cast()))
    for codec in (Eden(), RandomK(share=0.1), Integers(bits=2)):
        refused(r"error_feedback=true: with these settings \w+ is no contraction", down=Downlink(codec=codec))
    refused(r"error_feedback=true: rounds of Buffered have several models", schedule=Buffered(buffer=1), down=down)
    with pytest.raises(ValueError, match="models of another kind"):
        on_broadcast({"d": down}, Broadcast(1, torch.zeros(18), 1.0, payload={"vector": 0}), {}, LAYOUT, SERVER)
    every = partial(CFL, aggregator=EveryUpdate())
    with pytest.raises(ValueError, match=r"\['down'\]: must be none of the model, CFL has one for each client"):
        setup_of(Linear(), strategy=averaging(strategy=every, down=down)).check()
