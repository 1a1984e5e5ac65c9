"""What an attack is given: all that is public, and no client's samples."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from flrl.attacks import Observation
from flrl.attacks.observe import observe
from flrl.data.facts import bounds_of
from flrl.data.sources import TensorSource
from tests.attacks.conftest import Finished
from tests.attacks.test_replay import opened


def rows(source: Any) -> set[bytes]:
    return {inputs.numpy().tobytes() for inputs, _ in source.batches(np.arange(len(source)), 1)}


def test_no_clients_samples_are_reachable(finished: Finished) -> None:
    with opened(finished("stateful")) as replay:
        data = replay.worker.data
        client = replay.cohort(2)[0]
        observation, truth = observe(replay, 2, client, seed=3, num_candidates=60)
        again, _ = observe(replay, 2, client, seed=3, num_candidates=60)
        other, _ = observe(replay, 2, client, seed=4, num_candidates=60)
    train, test = rows(data.splits.train), rows(data.splits.test)
    public = rows(observation.public)
    assert public <= test
    assert len(observation.public) == len(data.splits.test) // 2
    source = observation.candidates.source
    inputs = torch.cat([batch for batch, _ in source.batches(np.arange(len(source)), 7)])
    own = {sample.numpy().tobytes() for sample in truth.inputs}
    inside = [sample.numpy().tobytes() in own for sample in inputs]
    assert inside == truth.members.tolist()
    assert (sum(inside), len(inside)) == (60, 120)
    assert 20 < sum(inside[:60]) < 40  # shuffled
    assert all((sample.numpy().tobytes() in test - public) != hit for sample, hit in zip(inputs, inside, strict=True))
    vectors = pickle.dumps([vars_of(observation)])  # all but the functions, which give models and updates
    assert not any(sample in vectors for sample in train - own)
    assert torch.equal(next(again.candidates.source.batches(np.arange(9), 9))[0], inputs[:9])
    assert not torch.equal(next(other.candidates.source.batches(np.arange(9), 9))[0], inputs[:9])


def vars_of(observation: Observation) -> dict[str, Any]:
    found = {name: getattr(observation, name) for name in observation.__slots__}
    return {name: value for name, value in found.items() if not callable(value)} | {
        "module": observation.module.state_dict(), "layout": None
    }  # fmt: skip


def test_how_clients_train_is_known(finished: Finished) -> None:
    with opened(finished("stateful")) as replay:
        client = replay.cohort(1)[0]
        seen, truth = observe(replay, 1, client, num_candidates=5)
        assert (seen.local.only_gradient, seen.local.batch_size, seen.local.steps) == (False, 50, 3)
        assert (seen.local.epochs, seen.local.shuffle) == (None, False)
        assert seen.local.lr is None  # SCAFFOLD adjusts gradients
        assert {*seen.vectors} == {"control"}
        assert seen.inputs.shape == (1, 8, 8)
        assert (float(seen.inputs.low), float(seen.inputs.high), seen.inputs.num_classes) == (0.0, 1.0, 10)
        assert seen.num_samples == replay.worker.data.sizes[client]
        assert len(truth.labels) == len(truth.inputs) <= 150
        assert torch.equal(replay.layout.flatten(seen.module), seen.sent)
        with pytest.raises(ValueError, match="the models before the rounds 1 to 2 are known, not that before round 3"):
            seen.model_before(3)


def test_one_step_of_sgd_is_known_as_a_gradient(finished: Finished) -> None:
    with opened(finished("fedavg")) as replay:
        seen, truth = observe(replay, 2, replay.cohort(2)[0], num_candidates=5)
        assert (seen.local.lr, seen.local.epochs, seen.local.num_steps(1)) == (0.05, 1, 1)
        loss = torch.nn.functional.cross_entropy(seen.module(truth.inputs), truth.labels)
        expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(seen.module.parameters()))])
        torch.testing.assert_close(seen.gradient, expected.double(), rtol=0, atol=1e-6)
        assert seen.update_in(2).equal(seen.update)
        assert seen.clients[0] not in replay.cohort(1)
        assert seen.update_in(1) is None


def test_the_bounds_of_pixels_follow_from_the_normalisation() -> None:
    pixels = torch.full((3, 2, 4, 4), 7, dtype=torch.uint8)
    low, high = bounds_of(TensorSource(pixels, torch.tensor([0, 4, 2]), mean=[0.5, 0.25], std=[0.25, 0.5]))
    assert low.flatten().tolist() == [-2.0, -0.5]
    assert high.flatten().tolist() == [2.0, 1.5]
    assert low.shape == (2, 1, 1)
    assert int(pixels.max()) == 7
    assert bounds_of(TensorSource(pixels.float(), torch.tensor([0, 4, 2]))) is None
