"""Gradient pruning, gradient noise and Soteria."""

import numpy as np
import pytest
import torch
from torch import nn

from flrl.layout import ParameterLayout
from flrl.sampling import AllClients
from flrl.strategies import FedSGD
from flrl.trainers import EagerTrainer, LocalProblem, VectorizedTrainer
from flrl.trainers.measuring import measure
from flrl.transforms import AtClient, GradientNoise, GradientPruning, Soteria
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, Rich, fit, make_worker, setup_of
from tests.transforms.given import context, update
from tests.transforms.test_apply import SGD


def test_pruning_ranks_each_parameter_by_itself() -> None:
    """A layer of two rows of three and a bias of two; BatchNorm's statistics are sent whole."""
    layout = ParameterLayout(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(1, affine=False)))
    sent, memory, counts = GradientPruning(share=0.5).client(
        update(1.0, -6.0, 3.0, 3.0, 0.5, -3.0, 0.01, -0.02, 7.0, 1e-9), {}, context(layout=layout)
    )
    assert sent.vectors["update"].tolist() == [0.0, -6.0, 3.0, 3.0, 0.0, 0.0, 0.0, -0.02, 7.0, 1e-9]
    assert (memory, counts) == ({}, {"sent": 4.0})
    # 0.01 is no float32: numbers are in float64, of each of two parameters a bitmap and its kind, and a mark.
    assert sent.payload == {"update": 4 * 8 + 2 * 2 + 2 * 8 + 1, "control": 4}


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_the_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(ValueError, match=rf"gradient_pruning\.share={share}: must be above 0 and at most 1$"):
        GradientPruning(share=share)


def noise(kind: str, size: int = 4, covers: str = "trainable", std: float = 2.0, **where: int) -> torch.Tensor:
    given = update(*[0.0] * size, control=torch.zeros(2).double())
    sent = GradientNoise(std=std, kind=kind, covers=covers).client(given, {}, context(**where))[0]  # type: ignore[arg-type]
    assert not given.vectors["update"].any()
    return torch.cat([sent.vectors["update"], sent.vectors["control"]])


@pytest.mark.parametrize(("kind", "kurtosis"), [("gaussian", 3.0), ("laplace", 6.0)])
def test_noise_of_a_client_follows_seed_round_and_client(kind: str, kurtosis: float) -> None:
    assert torch.equal(noise(kind), noise(kind))
    assert len({tuple(noise(kind, round=r, client_id=c).tolist()) for r in (1, 2) for c in (3, 4)}) == 4
    torch.testing.assert_close(noise(kind, std=4.0), 2 * noise(kind), rtol=1e-12, atol=0)
    assert [value != 0 for value in noise(kind).tolist()] == [True, True, False, False, False, False]
    assert all(noise(kind, covers="all").tolist())
    many = noise(kind, 200_000, "update")[:200_000]
    assert abs(float(many.mean())) < 0.02
    assert float(many.std()) == pytest.approx(2.0, rel=0.02)
    assert float((many / 2.0).pow(4).mean()) == pytest.approx(kurtosis, rel=0.06)


def test_settings_of_noise_are_checked() -> None:
    with pytest.raises(ValueError, match=r"gradient_noise\.std=-1: must be at least 0 and finite$"):
        GradientNoise(std=-1)
    with pytest.raises(ValueError, match=r"gradient_noise\.kind='cauchy': must be 'gaussian' or 'laplace'$"):
        GradientNoise(std=1.0, kind="cauchy")  # type: ignore[arg-type]


A = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.5, 0.5], [-1.0, -1.0]])


class TwoLayers(Linear):
    """The second layer's input is A times the first two features, cut at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 3))
        with torch.no_grad():
            self.net[0].weight.zero_()[:, :2] = A

    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/noted", loss)
        return loss


def test_soteria_prunes_the_largest_of_representation_over_slope() -> None:
    """x = (2, 1) and (4, 1): r sums to (6, 26, 4, 0), the norms of dr/dx to 2 (1, 5, sqrt(1/2), 0)."""
    module = TwoLayers().eval()
    batches = [
        (torch.tensor([[2.0, 1.0, 0, 0, 9], [4.0, 1.0, 0, 0, 9], [0.0, 900.0, 0, 0, 9]]), torch.tensor([0, 1, 2]))
    ]
    at_client = AtClient(module, batches, lambda batch: module.net(batch[0]).sum())
    # 6 / 2 = 3, 26 / 10 = 2.6, 4 / sqrt(2) = 2.83, and nothing.
    orders = {0.25: [0], 0.5: [0, 2], 0.75: [0, 2, 1], 0.9: [0, 2, 1, 3]}
    for share, expected in orders.items():
        soteria = Soteria(layer="net.3", share=share, samples=2)
        assert soteria.measure(at_client)["places"].tolist() == expected
    whole = Soteria(layer="net.3", share=0.25).measure(at_client)["places"]
    assert whole.tolist() == [1]  # 6 / 3, (26 + 3600) / 15, (4 + 450) / (3 sqrt(1/2))


@pytest.mark.parametrize("trainer", [EagerTrainer(batch_size=2), VectorizedTrainer(batch_size=2)])
def test_soteria_in_a_round(trainer: EagerTrainer) -> None:
    """Columns of the layer alone are zero; the mask is measured without dropout, at the model that was sent."""
    transforms = {"soteria": Soteria(layer="net.3", share=0.5)}
    strategy = FedSGD(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=transforms)
    worker = make_worker(strategy, module=TwoLayers(), trainer=trainer)
    broadcast = Broadcast(1, worker.model.vector.clone(), 20.0)
    sums = worker.train(broadcast, [ClientTask(1, 0, 20, 20.0)], lambda report: None)[0].result()[0]["update"]
    entry = next(entry for entry in worker.model.layout.entries if entry.name == "net.3.weight")
    columns = sums[entry.slice].view(entry.shape)
    task = ClientTask(1, 0, 20, 20.0)
    indices = worker.data.train_indices(0)
    source = worker.data.splits.train
    problem = LocalProblem.of(worker.model, source, indices, task, broadcast, 0)
    places = measure(transforms, problem, trainer)["soteria"]["places"].tolist()
    r = (source.inputs[indices, :2] @ A.T).clamp(min=0)
    slopes = (r > 0).sum(0) * torch.tensor([1.0, 5.0, 0.5**0.5, 2**0.5])
    assert places == (r.sum(0) / slopes).argsort(descending=True)[:2].tolist()
    assert (columns == 0).all(0).nonzero().flatten().tolist() == sorted(places)
    assert worker.model.module.training
    assert sums[: entry.start].all()
    record = fit(worker)[1][0]
    assert record.metrics["transforms/soteria/pruned"] == 6.0


def test_soteria_without_its_layer_is_refused() -> None:
    def refused(layer: str) -> None:
        strategy = FedSGD(
            rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms={"s": Soteria(layer=layer, share=0.5)}
        )
        setup_of(Rich(), strategy=strategy).check()

    for layer in ("net.1", "fc"):
        message = (
            rf"^strategy\.transforms\.soteria\.layer='{layer}': must be a torch\.nn\.Linear whose weight is sent: "
        )
        with pytest.raises(ValueError, match=message + r"net\.0, net\.4, net\.6$"):
            refused(layer)
    refused("net.4")
    with pytest.raises(ValueError, match=r"soteria\.share=1: must be above 0 and below 1$"):
        Soteria(layer="net.4", share=1)
    with pytest.raises(ValueError, match=r"soteria\.samples=0: must be at least 1$"):
        Soteria(layer="net.4", share=0.5, samples=0)


def test_soteria_needs_samples_with_derivatives() -> None:
    module = TwoLayers()
    tokens = AtClient(module, [(torch.tensor([[2, 1, 0, 0, 0]]), torch.tensor([0]))], lambda batch: None)
    with pytest.raises(ValueError, match="needs batches whose first part are floating-point inputs"):
        Soteria(layer="net.3", share=0.5).measure(tokens)
    uncalled = AtClient(module, [(torch.ones(1, 5), torch.tensor([0]))], lambda batch: None)
    with pytest.raises(ValueError, match="must be called with one vector for each sample, which depends on the inputs"):
        Soteria(layer="net.3", share=0.5).measure(uncalled)


def test_a_transform_that_measures_nothing_costs_nothing() -> None:
    worker = make_worker(FedSGD(rounds=1, sampler=AllClients(), server_optimizer=SGD))
    problem = LocalProblem.of(
        worker.model,
        worker.data.splits.train,
        np.arange(3),
        ClientTask(1, 0, 3, 3.0),
        Broadcast(1, worker.model.vector, 3.0),
        0,
    )
    before = worker.model.local.clone()
    worker.model.local += 1
    assert measure({"prune": GradientPruning(share=0.5)}, problem, EagerTrainer()) == {}
    assert torch.equal(worker.model.local, before + 1)
