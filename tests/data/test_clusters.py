import numpy as np
import pytest
from sklearn.datasets import make_classification

from flrl.data.clusters import gaussian_clusters


@pytest.mark.parametrize(
    ("num_samples", "features", "num_classes", "separation"),
    [(2500, 20, 5, 1.0), (200_001, 20, 5, 1.0), (70_000, 7, 3, 0.3), (10, 4, 16, 2.0), (1000, 40, 2, 1.0)],
)
def test_samples_have_the_bits_of_those_of_scikit_learn(
    num_samples: int, features: int, num_classes: int, separation: float
) -> None:
    expected, classes = make_classification(
        num_samples,
        features,
        n_informative=features,
        n_redundant=0,
        n_classes=num_classes,
        n_clusters_per_class=1,
        class_sep=separation,
        random_state=num_samples,
    )
    inputs, labels = gaussian_clusters(
        num_samples, features, num_classes=num_classes, separation=separation, seed=num_samples
    )
    assert inputs.dtype == np.float32
    assert np.array_equal(inputs.view(np.int32), expected.astype(np.float32).view(np.int32))
    assert labels.dtype == np.int64
    assert np.array_equal(labels, classes)
