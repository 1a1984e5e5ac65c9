"""The variational bottleneck: its code, its divergence by hand, and how its loss reaches a client's training."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from flrl.models import Classifier
from flrl.models.bottleneck import Bottleneck
from flrl.models.nets import mlp_2nn, resnet18
from flrl.sampling import AllClients
from flrl.strategies import FedSGD
from flrl.trainers import EagerTrainer, VectorizedTrainer
from tests.toys import fit, make_worker

SGD = partial(torch.optim.SGD, lr=0.2)


def by_hand(beta: float = 0.5) -> Bottleneck:
    """A code of two numbers with means x and 2 x, and standard deviations softplus(0) and softplus(log(e - 1)) = 1."""
    net = Bottleneck(net=nn.Sequential(nn.Linear(1, 3)), size=2, beta=beta)
    with torch.no_grad():
        net.encoder.weight.copy_(torch.tensor([[1.0], [2.0], [0.0], [0.0]]))
        net.encoder.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 5.0 + math.log(math.e - 1)]))
        net.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        net.head.bias.zero_()
    return net


def test_scores_and_divergence_by_hand() -> None:
    std = math.log(2)
    inputs = torch.tensor([[1.0], [3.0]])
    scores, penalty = by_hand().eval().penalised(inputs)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]))
    # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s, summed over the code; the second s is 1.
    first, second = ((5 * x**2 + std**2 - 1) / 2 - math.log(std) for x in (1.0, 3.0))
    assert penalty.detach().item() == pytest.approx(0.5 * (first + second) / 2, rel=1e-5)
    torch.manual_seed(0)
    codes = by_hand().train()(torch.ones(20_000, 1))[:, :2]
    torch.testing.assert_close(codes.mean(0), torch.tensor([1.0, 2.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(codes.std(0), torch.tensor([std, 1.0]), rtol=0.02, atol=0)


def test_the_classifier_adds_the_penalty_to_the_loss_that_it_trains_with() -> None:
    module = Classifier(net=by_hand(), num_classes=3, optimizer=SGD).eval()
    batch = torch.tensor([[1.0], [3.0]]), torch.tensor([2, 0])
    scores, penalty = module.net.penalised(batch[0])
    assert torch.equal(module.training_step(batch, 0), nn.functional.cross_entropy(scores, batch[1]) + penalty)
    assert torch.equal(module(batch[0]), scores)
    plain = Classifier(net=nn.Linear(1, 3), num_classes=3, optimizer=SGD)
    assert torch.equal(plain.training_step(batch, 0), nn.functional.cross_entropy(plain(batch[0]), batch[1]))


def test_it_stands_before_the_last_layer_of_any_net() -> None:
    shape = {"input_shape": [1, 8, 8], "num_classes": 10}
    dense = Bottleneck(net=mlp_2nn(**shape, hidden=20), size=4, beta=0.1)
    assert [type(part) for part in dense.body][-2:] == [nn.ReLU, nn.Identity]
    assert (dense.encoder.in_features, dense.encoder.out_features) == (20, 8)
    residual = Bottleneck(net=resnet18(**shape), size=4, beta=0.1)
    assert isinstance(residual.body.fc, nn.Identity)
    for net in (dense, residual):
        assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.slow
def test_a_large_beta_draws_the_code_to_standard_normal_numbers() -> None:
    """The same steps with beta 0 leave the deviation near where it began, softplus(-5) = 0.0067."""

    def deviation(beta: float, trainer: EagerTrainer) -> float:
        torch.manual_seed(0)
        net = Bottleneck(
            net=nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), size=2, beta=beta
        )
        module = Classifier(net=net, num_classes=3, optimizer=SGD)
        worker = make_worker(
            FedSGD(rounds=60, sampler=AllClients(), server_optimizer=SGD), module=module, trainer=trainer
        )
        worker.model.load(fit(worker)[0].vector)
        inputs = worker.data.splits.test.inputs
        raw = net.encoder(net.body(inputs)).chunk(2, dim=1)[1]
        return float(nn.functional.softplus(raw - 5).detach().mean())

    assert deviation(0.0, EagerTrainer(batch_size=40)) < 0.02
    assert 0.5 < deviation(1.0, EagerTrainer(batch_size=40)) < 1.2
    assert 0.5 < deviation(1.0, VectorizedTrainer(batch_size=40)) < 1.2


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"^model\.net\.size=0: must be at least 1$"):
        Bottleneck(net=nn.Sequential(nn.Linear(1, 3)), size=0, beta=1.0)
    with pytest.raises(ValueError, match=r"^model\.net\.beta=-1: must be at least 0 and finite$"):
        Bottleneck(net=nn.Sequential(nn.Linear(1, 3)), size=1, beta=-1)
    with pytest.raises(
        ValueError, match=r"^model\.net\.net: ReLU has no torch\.nn\.Linear to put a bottleneck before$"
    ):
        Bottleneck(net=nn.ReLU(), size=1, beta=1.0)
