"""FLTrust, and the server's own update that it compares with."""

from functools import partial

import pytest
import torch

from flrl.aggregation import FLTrust
from flrl.errors import ClientError
from flrl.root_update import root_update
from flrl.sampling import AllClients
from flrl.seeding import SERVER
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer
from flrl.transforms import ClipNorm
from flrl.types import Broadcast
from tests.toys import Linear, fit, make_worker, setup_of

SGD = partial(torch.optim.SGD, lr=1.0)
ROOT = [2.0, 0.0]


def test_updates_count_by_their_cosine_at_the_root_updates_norm() -> None:
    """Cosines 3/5, 1 and 0: (3, 4) becomes (1.2, 1.6), (1, 0) becomes (2, 0); 3/8 of the first, 5/8 of the second."""
    rule = FLTrust()
    assert rule([[3.0, 4.0], [0.0, -9.0]], root=ROOT).tolist() == pytest.approx([1.2, 1.6])
    assert rule([[3.0, 4.0], [1.0, 0.0], [-7.0, 1.0]], root=ROOT).tolist() == pytest.approx([1.7, 0.6])
    assert rule([[3.0, 4.0], [1.0, 0.0]], [9.0, 1.0], root=ROOT).tolist() == pytest.approx([1.7, 0.6])
    assert rule([[1e30, 0.0], [1.0, 0.0], [0.0, 0.0]], root=ROOT).tolist() == pytest.approx([2.0, 0.0])
    assert rule([[-1.0, 0.0], [0.0, 1.0]], root=ROOT).tolist() == [0.0, 0.0]
    for root, message in ((None, r"FLTrust\(\)\(rows, root=update\)"), ([0.0, 0.0], "root samples is zero")):
        with pytest.raises(ValueError, match=message):
            rule([[1.0, 0.0]], root=root)


def test_a_server_without_samples_is_refused_before_the_first_round() -> None:
    FLTrust().check(setup_of(num_root_samples=1))
    with pytest.raises(ValueError, match=r"FLTrust needs root samples, .*: root_samples=100"):
        FLTrust().check(setup_of())


def test_the_root_update_is_a_step_on_the_servers_samples_without_transforms() -> None:
    options = {"sampler": AllClients(), "server_optimizer": SGD, "transforms": {"clip": ClipNorm(max_norm=1e-9)}}
    strategy = FedAvg(rounds=1, aggregator=FLTrust(), **options)
    worker = make_worker(strategy, trainer=EagerTrainer(batch_size=50), root_samples=7)
    start = worker.model.vector.clone()
    found = root_update(worker, Broadcast(1, start, 90.0))["update"]
    indices = worker.data.train_indices(SERVER)
    assert len(indices) == 7
    module = Linear()
    module.load_state_dict(worker.model.module.state_dict())
    torch.nn.utils.vector_to_parameters(start, module.parameters())
    source = worker.data.splits.train
    module.training_step((source.inputs[indices], source.targets[indices]), 0).backward()  # type: ignore[attr-defined]
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    torch.testing.assert_close(found, -0.1 * gradient.double(), rtol=1e-5, atol=1e-7)


def test_a_round_moves_the_model_by_the_root_updates_norm_at_most() -> None:
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, aggregator=FLTrust())
    worker = make_worker(strategy, root_samples=5)
    start = worker.model.vector.clone()
    norm = float(root_update(worker, Broadcast(1, start, 90.0))["update"].norm())
    worker.model.load(start)
    state, history = fit(worker)
    assert 0.5 * norm < float((state.vector.double() - start.double()).norm()) <= norm * (1 + 1e-6)
    assert history[-1].metrics["aggregator/rejected"] == 0.0
    with pytest.raises(ClientError, match="the server's root samples, round 1: update is not finite"):
        root_update(worker, Broadcast(1, torch.full_like(start, 1e38), 90.0))
