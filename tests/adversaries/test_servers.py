"""Runs with a server that tampers with the model that it sends. All clients are honest."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from flrl.adversaries import Adversary, ServerFishing, ServerImprint
from flrl.models.nets import mcmahan_cnn, mlp_2nn, softmax_regression
from flrl.setup import Setup
from flrl.trainers import EagerTrainer
from flrl.types import Broadcast
from tests.adversaries.parts import Pictures, federation
from tests.toys import fit

SHAPE = {"input_shape": [1, 6, 6], "num_classes": 3}
SERVERS = {
    "imprint": ServerImprint,
    "brightness": partial(ServerImprint, measurement="brightness"),
    "class": partial(ServerFishing, target=2),
    "feature": partial(ServerFishing, target=2, feature=1, threshold=0.5),
}
every = pytest.mark.parametrize("name", SERVERS)


class Net(Pictures):
    """A 2NN of images of 6 x 6 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp_2nn(**SHAPE, hidden=8)  # type: ignore[assignment, arg-type]


def digests(adversary: Adversary | None = None, rounds: int = 3) -> list[str]:
    return [record.digest for record in fit(federation(adversary, rounds=rounds, module=net()))[1]]


def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def plain() -> list[str]:
    return digests()


@every
def test_rounds_in_which_the_server_is_honest_are_as_without_it(name: str, plain: list[str]) -> None:
    make: Any = SERVERS[name]
    assert digests(make(start=4)) == plain
    late = digests(make(start=3))
    assert late[:2] == plain[:2]
    assert late[2] != plain[2]
    assert digests(make(stop=1))[0] != plain[0]


@every
def test_a_run_is_the_same_each_time_and_goes_on_where_it_was(name: str) -> None:
    make: Any = SERVERS[name]
    straight = digests(make())
    assert digests(make()) == straight
    state, history = fit(federation(make(), rounds=1, module=net()))
    _, resumed = fit(federation(make(), rounds=3, module=net()), state=state, history=history)
    assert [record.digest for record in resumed] == straight


def test_the_servers_own_model_is_stepped_by_what_comes_back() -> None:
    """By what an honest server would step the tampered model by, if that was its own."""
    lying, honest = federation(ServerImprint(), rounds=1, module=net()), federation(rounds=1, module=net())
    layout, own = lying.model.layout, lying.model.vector.clone()
    sent = lying.threat.sent(Broadcast(1, own, 1.0), layout).vector
    after, [record] = fit(lying)
    tampered, _ = fit(honest, state=honest.strategy.initialize(sent, layout))
    torch.testing.assert_close(after.vector - own, tampered.vector - sent, rtol=0, atol=1e-6)
    assert float((after.vector - own).abs().max()) > 1e-2
    assert record.metrics["adversary/num"] == 0.0


@pytest.mark.parametrize(
    ("made", "adversary", "message"),
    [
        (
            mcmahan_cnn,
            ServerImprint(),
            r"the first layers must be a Linear with a bias, .* Linear; net.0 is a Conv2d, ",
        ),
        (
            softmax_regression,
            ServerImprint(),
            r"the first layers must be .* a Linear; net.1 is a Linear; model/net=with_",
        ),
        (
            lambda **_: nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)),
            ServerFishing(target=0),
            r"the last layer must be a Linear with a bias; net.3 is a Linear",
        ),
        (mlp_2nn, ServerFishing(target=3), r"adversary.target=3: the model has 3 classes, from 0"),
        (
            mlp_2nn,
            ServerFishing(target=0, feature=200, threshold=0.0),
            r"adversary.feature=200: the last layer has 200 inputs, from 0",
        ),
    ],
)
def test_modules_without_the_layers_are_refused(made: Any, adversary: Adversary, message: str) -> None:
    module = Pictures()
    module.net = made(**SHAPE)
    strategy = federation().strategy
    with pytest.raises(ValueError, match=message):
        Setup.of(module, strategy, EagerTrainer(batch_size=4), [6, 9], adversary=adversary).check()


@every
def test_personal_parameters_are_refused(name: str) -> None:
    make: Any = SERVERS[name]
    with pytest.raises(ValueError, match=r"needs the whole model, strategy.personal must be \[\]$"):
        federation(make(), module=net(), personal=["net.5.*"])
