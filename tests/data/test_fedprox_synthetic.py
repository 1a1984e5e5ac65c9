"""Synthetic(alpha, beta): equal to a transcription of the authors' script, draw by draw."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from flrl.data.fedprox_synthetic import synthetic_fedprox


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    """The global generators are left as they were."""
    before = np.random.get_state(), random.getstate()
    yield
    np.random.set_state(before[0])
    random.setstate(before[1])


def script(alpha: float, beta: float, iid: bool, seed: int) -> Any:
    """What `generate_synthetic.py` (`generate_iid.py`) writes: training and test samples by device."""
    np.random.seed(seed)
    random.seed(seed)
    count = np.random.lognormal(4, 2, 30).astype(int) + 50
    if not iid:
        u, big_b, v = np.random.normal(0, alpha, 30), np.random.normal(0, beta, 30), np.zeros((30, 60))
        for k in range(30):
            v[k] = np.random.normal(big_b[k], 1, 60)
    else:
        v, w, b = np.zeros((30, 60)), np.random.normal(0, 1, (60, 10)), np.random.normal(0, 1, 10)
    sigma, made = np.diag([(j + 1) ** -1.2 for j in range(60)]), []
    for k in range(30):
        if not iid:
            w, b = np.random.normal(u[k], 1, (60, 10)), np.random.normal(u[k], 1, 10)
        xs = np.random.multivariate_normal(v[k], sigma, count[k])
        ys = []
        for x in xs:
            raised = np.exp(np.dot(x, w) + b)
            ys.append(np.argmax(raised / np.sum(raised)))
        made.append([*zip(xs.tolist(), ys, strict=True)])
    for samples in made:
        random.shuffle(samples)
    return [(samples[: int(0.9 * len(samples))], samples[int(0.9 * len(samples)) :]) for samples in made]


@pytest.mark.parametrize(
    ("alpha", "beta", "iid", "seed"),
    [
        (1, 1, False, 89),
        pytest.param(0, 0.5, False, 859, marks=pytest.mark.slow),
        pytest.param(0, 0, False, 6, marks=pytest.mark.slow),
        pytest.param(0, 0, True, 89, marks=pytest.mark.slow),
    ],
)
def test_the_authors_numbers(alpha: float, beta: float, iid: bool, seed: int) -> None:
    with threadpool_limits(1):
        expected = script(alpha, beta, iid, seed)
    splits = synthetic_fedprox(alpha=alpha, beta=beta, iid=iid, seed=seed)
    assert splits.groups.tolist() == [k for k, (train, _) in enumerate(expected) for _ in train]
    for part, source in enumerate((splits.train, splits.test)):
        samples = [sample for device in expected for sample in device[part]]
        assert np.array_equal(source.inputs.numpy(), np.array([x for x, _ in samples], np.float32))
        assert source.targets.tolist() == [y for _, y in samples]
    assert splits.num_classes == 10


def test_it_leaves_the_global_generators_alone() -> None:
    np.random.seed(3)
    random.seed(3)
    expected = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    synthetic_fedprox(alpha=0.0, beta=0.0, seed=89)
    assert (np.random.rand(), random.random()) == expected


@pytest.mark.parametrize(("name", "value"), [("alpha", -0.5), ("beta", float("inf")), ("seed", 2**32)])
def test_settings_have_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^dataset\.{name}={value}: must be at least 0 and "):
        synthetic_fedprox(**{"alpha": 1.0, "beta": 1.0, "seed": 0, name: value})
