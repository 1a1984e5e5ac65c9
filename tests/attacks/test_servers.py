"""Servers that tamper with the model that they send, and what comes back. Client 0 has one zero among its samples."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flrl.adversaries import ServerFishing, ServerImprint, Threat
from flrl.attack import main
from flrl.attacks import Observation
from flrl.attacks.analytic import Analytic
from flrl.attacks.fishing import Fishing
from flrl.attacks.imprint import Imprint, binned
from flrl.data import TensorSource
from flrl.layout import ParameterLayout
from flrl.models.imprinted import WithImprintLayer
from flrl.models.nets import mcmahan_cnn, mlp_2nn
from flrl.transforms import GradientNoise
from flrl.types import Broadcast, ClientUpdate
from tests.attacks.malicious import PUBLIC, classifier, digits, errors, observed, quiet
from tests.transforms.given import context

SHAPE = {"input_shape": [1, 8, 8], "num_classes": 10}
SAME = 1e-6
"""Mean squared error in pixels."""
ROUNDED = 1.5e-5
"""The same where a float32 weight was stepped by little."""


def mlp(hidden: int = 100) -> Any:
    torch.manual_seed(0)
    return classifier(mlp_2nn(**SHAPE, hidden=hidden))


def tampered(adversary: Any, module: Any, seed: int = 0) -> Tensor:
    """What clients are sent in round 1."""
    layout = ParameterLayout(module)
    images, classes = digits(PUBLIC, size=8)
    threat = Threat.of(adversary, 4, seed, TensorSource(images, classes))
    sent: Tensor = threat.sent(Broadcast(1, layout.flatten(module).detach(), 1.0), layout).vector
    return sent


def alone(sent: Tensor, images: Tensor, layer: str, module: Any = None) -> Tensor:
    """Whether no other sample activates as many neurons of the imprint, bool `[n]`."""
    parts = ParameterLayout(mlp() if module is None else module).unflatten(sent)
    weight, bias = parts[f"{layer}.weight"], parts[f"{layer}.bias"]
    bins = (torch.nn.functional.linear(images.flatten(1), weight, bias) > 0).sum(dim=1)
    return (bins[:, None] == bins[None, :]).sum(dim=1) == 1


def noisy(observation: Observation) -> Observation:
    """As if the client had added noise to what it sends."""
    given = ClientUpdate(0, 1.0, {"update": observation.update}, {}, 1)
    sent, *_ = GradientNoise(std=0.01).client(given, {}, context(layout=observation.layout))
    return replace(observation, update=sent.vectors["update"])


@pytest.mark.parametrize(
    ("measurement", "clients", "samples", "singles"),
    [
        ("random", 1, 16, 14),
        ("random", 1, 32, 13),
        ("random", 4, 8, 13),
        ("brightness", 1, 16, 12),
        ("brightness", 4, 8, 20),
    ],
)
def test_an_imprint_gives_exactly_the_samples_that_are_alone_in_their_bin(
    measurement: Any, clients: int, samples: int, singles: int
) -> None:
    module = mlp()
    sent = tampered(ServerImprint(measurement=measurement), module)
    parts = [digits(range(samples * c, samples * (c + 1)), size=8) for c in range(clients)]
    images = torch.cat([inputs for inputs, _ in parts])
    for epochs, same in ((0, SAME), (1, ROUNDED)):  # FedSGD, and one step of FedAvg
        observation = observed(module, sent, parts, epochs=epochs, size=samples, lr=1.0)
        assert Imprint().objection(observation) is None
        found = Imprint().find(observation, quiet)
        recovered = errors(found.inputs, images) < same
        assert recovered.tolist() == alone(sent, images, "net.1").tolist()
        assert int(recovered.sum()) == singles
        assert found.numbers["bins"] == 100


def test_bins_by_hand() -> None:
    """x = (1, 2) alone in bin 0 with derivative 1, nobody in bin 1, (3, 4) and (6, 1) in the last with 2 and 1."""
    weights, biases = torch.tensor([[13.0, 11.0], [12.0, 9.0], [12.0, 9.0]]), torch.tensor([4.0, 3.0, 3.0])
    assert binned(weights, biases, 1e-3).tolist() == [[1.0, 2.0], [4.0, 3.0]]
    assert binned(weights, biases, 0.5).tolist() == [[4.0, 3.0]]


def test_as_many_samples_are_alone_as_the_formula_says() -> None:
    """Of 32 samples in 100 bins: 23.4."""
    images, _ = digits(range(32), size=8)
    counts = [int(alone(tampered(ServerImprint(), mlp(), seed), images, "net.1").sum()) for seed in range(10)]
    assert sum(counts) / 10 == pytest.approx(32 * 0.99**31, abs=2)


def test_an_imprint_holds_after_several_steps_of_a_small_learning_rate() -> None:
    """Four steps of FedAvg; 47 of 64 samples are alone in 200 bins."""
    torch.manual_seed(0)
    module = classifier(mlp_2nn(**SHAPE))
    images, classes = digits(range(64), size=8)
    observation = observed(module, tampered(ServerImprint(), module), [(images, classes)], epochs=1, lr=0.01)
    recovered = int((errors(Imprint().find(observation, quiet).inputs, images) < SAME).sum())
    assert abs(recovered - 64 * (1 - 1 / 200) ** 63) < 12


def test_noise_spoils_an_imprint() -> None:
    module = mlp()
    images, classes = digits(range(16), size=8)
    observation = noisy(observed(module, tampered(ServerImprint(), module), [(images, classes)]))
    assert float(errors(Imprint().find(observation, quiet).inputs, images).min()) > 1e-2


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
    sent = tampered(ServerFishing(target=target), module)
    for epochs, same in ((0, SAME), (1, ROUNDED)):
        observation = observed(module, sent, [(images, classes)], epochs=epochs)
        assert Fishing().objection(observation) is None
        found = Fishing().find(observation, quiet)
        assert float(errors(found.inputs, images)[place]) < same
        assert found.labels is not None
        assert found.labels.tolist() == [target]
    spoilt = Fishing().find(noisy(observed(module, sent, [(images, classes)])), quiet)
    assert float(errors(spoilt.inputs, images)[place]) > 1e-2


def test_nothing_is_caught_where_nobody_has_the_class() -> None:
    module = mlp(16)
    images, classes = digits(range(64), size=8)
    kept = classes != 0
    observation = observed(module, tampered(ServerFishing(target=0), module), [(images[kept], classes[kept])])
    found = Fishing().find(observation, quiet)
    assert (found.inputs, found.labels, found.numbers) == (None, None, {"caught": 0.0})


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
    images, classes = digits(range(16), size=8)
    assert torch.equal(module(images), plain(images))
    sent = tampered(ServerImprint(), module)
    observation = observed(module, sent, [(images, classes)])
    assert Imprint().objection(observation) is None
    recovered = errors(Imprint().find(observation, quiet).inputs, images) < SAME
    assert recovered.tolist() == alone(sent, images, "net.block.1", module).tolist()
    assert int(recovered.sum()) == 14


@pytest.mark.parametrize(
    ("adversary", "attack", "client", "count"),
    [("server_imprint seed=2", "imprint", 1, 16), ("server_fishing adversary.target=0", "fishing", 0, 1)],
)
def test_a_run_is_tampered_with_and_read(cli: Any, adversary: str, attack: str, client: int, count: int) -> None:
    run = (
        "strategy=fedsgd", "model=mlp_2nn", "partition.num_clients=90", *f"adversary={adversary}".split(),
        "strategy/sampler=all", "adversary.stop=1", "strategy.rounds=2", "hydra.run.dir=run", "callbacks=none",
    )  # fmt: skip
    done = cli(*run)
    assert done.code == 0, done.err
    done = cli("run=run", f"attack={attack}", "round=1", f"client={client}", main=main)
    assert done.code == 0, done.err
    result = json.loads(Path(f"run/attacks/{attack}/result.json").read_text())
    assert (result["samples"], result["reconstructed"]) == (16, count)
    assert result["mse"] < 1e-9
    done = cli("run=run", f"attack={attack}", "round=2", f"client={client}", main=main)  # the server was honest then
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
