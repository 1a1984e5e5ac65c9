"""Synthetic(alpha, beta), the data of FedProx, with the numbers of its authors' code.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv
1812.06127, appendix C.1, and the scripts `generate_synthetic.py` and `generate_iid.py` of its repository.
"""

import random

import numpy as np
import torch

from flrl.data.sources import Splits, TensorSource

DEVICES, FEATURES, CLASSES = 30, 60, 10


def synthetic_fedprox(*, alpha: float, beta: float, iid: bool = False, seed: int) -> Splits:
    """30 devices of int(lognormal(4, 2)) + 50 samples each; the class of x is argmax(softmax(W_k x + b_k)).

    Device k has u_k ~ N(0, alpha), B_k ~ N(0, beta), W_k and b_k ~ N(u_k, 1), v_k ~ N(B_k, 1) and x ~ N(v_k, S), where
    S is diagonal with S_jj = j^-1.2. The paper writes N(mean, variance); the authors' code takes alpha and beta as
    standard deviations, and so does this. Samples of a device are shuffled, and the first 90 % are for training.
    With `iid` all devices have v_k = 0 and the same W, b ~ N(0, 1).

    The authors' scripts set no seed. The numbers here are those of a script that begins with `np.random.seed(seed)` and
    `random.seed(seed)`, as float32.

    Args:
        alpha: how much the devices' models differ; at least 0.
        beta: how much the devices' inputs differ; at least 0.
        iid: the variant of equal distributions, which takes neither.
        seed: of both generators, below 2^32; the run's seed by default in the yaml.

    Returns:
        Inputs `[samples, 60]`, classes 0 to 9; groups are the devices.

    Raises:
        ValueError: `alpha` or `beta` is negative or not finite, or the seed is out of range.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"dataset.{name}={value}: must be at least 0 and finite")
    if not 0 <= seed < 2**32:
        raise ValueError(f"dataset.seed={seed}: must be at least 0 and below 2**32")
    shuffler = random.Random(seed)
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "test": []}
    for inputs, classes in _devices(alpha, beta, iid, np.random.RandomState(seed)):
        order = list(range(len(inputs)))
        shuffler.shuffle(order)
        stop = int(0.9 * len(order))
        for part, chosen in (("train", order[:stop]), ("test", order[stop:])):
            parts[part].append((inputs[chosen].astype(np.float32), classes[chosen]))
    train, test = (
        TensorSource(*(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts[part], strict=True)))
        for part in ("train", "test")
    )
    groups = np.repeat(np.arange(DEVICES), [len(classes) for _, classes in parts["train"]])
    return Splits(train, test, groups=groups, num_classes=CLASSES)


def _devices(alpha: float, beta: float, iid: bool, rng: np.random.RandomState) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs, float64 `[n, 60]`, and classes, int64 `[n]`, of each device; draws are in the authors' order."""
    sizes = rng.lognormal(4, 2, DEVICES).astype(int) + 50
    spread = np.sqrt(np.arange(1, FEATURES + 1, dtype=float) ** -1.2)
    means = np.zeros((DEVICES, FEATURES))
    if iid:
        shared = rng.normal(0, 1, (FEATURES, CLASSES)), rng.normal(0, 1, CLASSES)
    else:
        models, inputs = rng.normal(0, alpha, DEVICES), rng.normal(0, beta, DEVICES)
        for device in range(DEVICES):
            means[device] = rng.normal(inputs[device], 1, FEATURES)
    made = []
    for device in range(DEVICES):
        if iid:
            weight, bias = shared
        else:
            weight = rng.normal(models[device], 1, (FEATURES, CLASSES))
            bias = rng.normal(models[device], 1, CLASSES)
        # `multivariate_normal` makes the same numbers, after a decomposition of the diagonal matrix.
        x = rng.standard_normal((sizes[device], FEATURES)) * spread + means[device]
        made.append((x, _softmax(x @ weight + bias).argmax(1)))
    return made


def _softmax(scores: np.ndarray) -> np.ndarray:
    """As the authors compute it: scores above 709 overflow, and the first of these classes is the largest one then."""
    with np.errstate(over="ignore", invalid="ignore"):
        raised = np.exp(scores)
        shares: np.ndarray = raised / raised.sum(1, keepdims=True)
    return shares
