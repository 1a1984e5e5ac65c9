"""Gaussian clusters with the bits of scikit-learn's `make_classification`, in a fraction of its memory."""

import numpy as np

_ROWS = 2**16


def gaussian_clusters(
    num_samples: int, features: int, *, num_classes: int, separation: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """What `make_classification` returns for one cluster per class and only informative features, inputs as float32.

    scikit-learn holds three float64 copies of all inputs. Here one cluster is drawn at a time: a second generator draws
    its normal numbers, while the first one has already drawn everything that comes after them.

    Args:
        num_samples: number of samples of all classes together.
        features: number of features of a sample.
        num_classes: number of classes, at most 2 to the number of features.
        separation: the clusters are at the corners of a hypercube with edges of twice this length.
        seed: seed of the generator, below 2^32.

    Returns:
        Inputs, float32 `[num_samples, features]`, and classes, int64 `[num_samples]`.
    """
    from sklearn.datasets._samples_generator import _generate_hypercube

    generator = np.random.RandomState(seed)
    corners = _generate_hypercube(num_classes, features, generator).astype(float)
    corners = corners * (2 * separation) - separation
    normals = np.random.RandomState()
    normals.set_state(generator.get_state())
    for start in range(0, num_samples, _ROWS):
        generator.standard_normal((min(_ROWS, num_samples - start), features))
    counts = [int(num_samples * (1.0 / num_classes))] * num_classes
    for extra in range(num_samples - sum(counts)):
        counts[extra % num_classes] += 1
    mixings = [2 * generator.uniform(size=(features, features)) - 1 for _ in range(num_classes)]
    labels = np.repeat(np.arange(num_classes), counts)
    flipped = generator.uniform(size=num_samples) < 0.01
    labels[flipped] = generator.randint(num_classes, size=flipped.sum())
    order = np.arange(num_samples)
    generator.shuffle(order)
    columns = np.arange(features)
    generator.shuffle(columns)
    place = np.empty_like(order)
    place[order] = np.arange(num_samples)
    inputs = np.empty((num_samples, features), dtype=np.float32)
    stop = 0
    for corner, mixing, count in zip(corners, mixings, counts, strict=True):
        start, stop = stop, stop + count
        # All rows in one product, as in scikit-learn: the last bits may depend on their number.
        cluster = np.dot(normals.standard_normal((count, features)), mixing)
        cluster += corner
        for first in range(0, count, _ROWS):
            block = slice(first, first + _ROWS)
            inputs[place[start:stop][block]] = cluster[block][:, columns]
        del cluster
    return inputs, labels[order]
