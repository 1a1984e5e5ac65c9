"""Servers that tamper with the model that they send, and what comes back. Client 0 has one zero among its samples."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flrl.adversaries import ServerFishing, ServerImprint, Threat
from flrl.attacks import Observation
from flrl.attacks.analytic import Analytic
from flrl.attacks.fishing import Fishing
from flrl.attacks.imprint import Imprint
from flrl.data import TensorSource
from flrl.layout import ParameterLayout
from flrl.models.imprinted import WithImprintLayer
from flrl.models.nets import mcmahan_cnn, mlp_2nn
from flrl.types import Broadcast
from tests.attacks.malicious import PUBLIC, classifier, digits, errors, observed, quiet

SHAPE = {"input_shape": [1, 8, 8], "num_classes": 10}
SAME = 1e-6


def mlp(hidden: int = 100) -> Any:
    torch.manual_seed(0)
    return classifier(mlp_2nn(**SHAPE, hidden=hidden))


def tampered(adversary: Any, module: Any) -> Tensor:
    """What clients are sent in round 1."""
    layout = ParameterLayout(module)
    images, classes = digits(PUBLIC, size=8)
    threat = Threat.of(adversary, 4, 0, TensorSource(images, classes))
    sent: Tensor = threat.sent(Broadcast(1, layout.flatten(module).detach(), 1.0), layout).vector
    return sent


def alone(sent: Tensor, module: Any, images: Tensor) -> Tensor:
    """Whether no other sample activates as many neurons of the imprint, bool `[n]`."""
    parts = ParameterLayout(module).unflatten(sent)
    bins = (torch.nn.functional.linear(images.flatten(1), parts["net.1.weight"], parts["net.1.bias"]) > 0).sum(dim=1)
    return (bins[:, None] == bins[None, :]).sum(dim=1) == 1


@pytest.mark.parametrize("measurement", ["random", "brightness"])
@pytest.mark.parametrize("clients", [1, 4])
def test_an_imprint_gives_exactly_the_samples_that_are_alone_in_their_bin(measurement: Any, clients: int) -> None:
    module = mlp()
    sent = tampered(ServerImprint(measurement=measurement), module)
    parts = [digits(range(8 * c, 8 * c + 8), size=8) for c in range(clients)]
    images = torch.cat([inputs for inputs, _ in parts])
    observation = observed(module, sent, parts)
    attack = Imprint()
    assert attack.objection(observation) is None
    found = attack.find(observation, quiet)
    recovered = errors(found.inputs, images) < SAME
    assert recovered.tolist() == alone(sent, module, images).tolist()
    assert int(recovered.sum()) >= len(images) // 3
    assert found.numbers["bins"] == 100


def test_an_imprint_holds_after_one_step_and_fails_under_noise() -> None:
    module = mlp()
    sent = tampered(ServerImprint(), module)
    images, classes = digits(range(8), size=8)
    stepped = observed(module, sent, [(images, classes)], epochs=1, lr=1e-3, size=8)
    assert int((errors(Imprint().find(stepped, quiet).inputs, images) < 1e-3).sum()) >= 5
    gradient = observed(module, sent, [(images, classes)])
    noise = 0.01 * torch.randn(len(gradient.update), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy = _with(gradient, gradient.update + noise)
    assert int((errors(Imprint().find(noisy, quiet).inputs, images) < 1e-2).sum()) == 0


def test_without_a_malicious_server_there_is_nothing_to_read() -> None:
    module = mlp()
    observation = observed(module, ParameterLayout(module).flatten(module).detach(), [digits(range(8), size=8)])
    assert Imprint().objection(observation) == (
        "the model that was sent has no imprint: the run needs adversary=server_imprint"
    )
    assert Fishing().objection(observation) == (
        "the model that was sent fishes for no class: the run needs adversary=server_fishing"
    )


def test_fishing_catches_the_one_sample_of_a_class_that_the_closed_form_misses() -> None:
    module = mlp(16)
    images, classes = digits(range(16), size=8)
    counts = torch.bincount(classes, minlength=10)
    target = int((counts == 1).nonzero()[0])
    place = int((classes == target).nonzero()[0])
    honest = observed(module, ParameterLayout(module).flatten(module).detach(), [(images, classes)])
    assert float(errors(Analytic().find(honest, quiet).inputs, images)[place]) > 1e-3
    observation = observed(module, tampered(ServerFishing(target=target), module), [(images, classes)])
    assert Fishing().objection(observation) is None
    found = Fishing().find(observation, quiet)
    assert float(errors(found.inputs, images)[place]) < SAME
    assert found.labels is not None
    assert found.labels.tolist() == [target]
    noise = 0.01 * torch.randn(len(honest.update), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy = Fishing().find(_with(observation, observation.update + noise), quiet)
    assert float(errors(noisy.inputs, images)[place]) > 1e-2


def test_a_feature_is_fished_for_where_all_samples_are_of_one_class() -> None:
    module = mlp()
    images, classes = digits(range(200), size=8)
    images = images[classes == 3]
    with torch.no_grad():
        features = module.net[:-1](images)
    feature = int(features.std(dim=0).argmax())
    largest = features[:, feature].sort(descending=True).values
    threshold = float(largest[0] + largest[1]) / 2
    adversary = ServerFishing(target=3, feature=feature, threshold=threshold)
    observation = observed(module, tampered(adversary, module), [(images, torch.full((len(images),), 3))])
    place = int(features[:, feature].argmax())
    assert float(errors(Fishing().find(observation, quiet).inputs, images)[place]) < SAME


def test_a_block_before_a_convolutional_net_is_imprinted() -> None:
    torch.manual_seed(0)
    plain = mcmahan_cnn(**SHAPE)
    module = classifier(WithImprintLayer(net=plain, input_shape=[1, 8, 8], bins=64))
    images, classes = digits(range(8), size=8)
    assert torch.equal(module(images), plain(images))
    observation = observed(module, tampered(ServerImprint(), module), [(images, classes)])
    assert Imprint().objection(observation) is None
    assert int((errors(Imprint().find(observation, quiet).inputs, images) < 1e-4).sum()) >= 4


@pytest.mark.parametrize(
    ("adversary", "attack", "strategy"),
    [("server_imprint", "imprint", "fedsgd"), ("server_fishing adversary.target=0", "fishing", "fedsgd")],
)
def test_a_run_is_tampered_with_and_read(cli: Any, adversary: str, attack: str, strategy: str) -> None:
    from flrl.attack import main

    run = (
        f"strategy={strategy}", "model=mlp_2nn", "partition.num_clients=90", *f"adversary={adversary}".split(),
        "strategy/sampler=all", "adversary.stop=1", "strategy.rounds=2", "hydra.run.dir=run", "callbacks=none",
    )  # fmt: skip
    done = cli(*run)
    assert done.code == 0, done.err
    done = cli("run=run", f"attack={attack}", "round=1", "client=0", main=main)
    assert done.code == 0, done.err
    result = json.loads(Path(f"run/attacks/{attack}/result.json").read_text())
    assert result["reconstructed"] >= 1
    assert result["mse"] < (1e-3 if attack == "imprint" else 1e-9)
    done = cli("run=run", f"attack={attack}", "round=2", "client=0", main=main)  # the server was honest then
    assert (done.code, "the run needs adversary=server_" in done.err) == (1, True)


def test_a_threat_of_no_server_sends_the_broadcast_itself() -> None:
    module = mlp()
    layout = ParameterLayout(module)
    broadcast = Broadcast(3, layout.flatten(module).detach(), 1.0)
    images, classes = digits(range(8), size=8)
    threat = Threat.of(ServerImprint(start=1, stop=2), 4, 0, TensorSource(images, classes))
    assert threat.sent(broadcast, layout) is broadcast


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ServerImprint(clients=2), "adversary.clients=2: must be 0, it is the server that is malicious"),
        (lambda: ServerImprint(measurement="x"), "adversary.measurement='x': must be 'random' or 'brightness'"),
        (lambda: ServerFishing(target=-1), "adversary.target=-1: must be at least 0"),
        (lambda: ServerFishing(target=1, strength=0), "adversary.strength=0: must be positive and finite"),
        (
            lambda: ServerFishing(target=1, feature=2),
            "adversary.threshold=None: belongs to adversary.feature=2; set both or none",
        ),
        (lambda: Imprint(tolerance=1), "attack.tolerance=1: must be at least 0 and below 1"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        make()


def _with(observation: Observation, update: Tensor) -> Observation:
    from dataclasses import replace

    return replace(observation, update=update)
