"""Partitions: functions that assign training samples to clients. A new one is a function here, or anywhere, and a yaml.

A partition is called as `partition(num_samples, labels, rng)` and returns each sample's owner, int64 `[num_samples]`
with values in `[0, num_clients)`. The same generator state gives the same partition. One with an argument `splits` is
given the dataset besides. Where clients have consecutive samples, `flrl.data.ranges.Consecutive` stands for the owners.
"""

from flrl.data.partitions.even import blocks, consecutive, iid
from flrl.data.partitions.few_classes import classes, shards
from flrl.data.partitions.label_skew import dirichlet, dirichlet_equal, inner_dirichlet, mixture
from flrl.data.partitions.natural import natural
from flrl.data.partitions.quantity import quantity_lognormal, quantity_power_law, quantity_skew

__all__ = [
    "blocks",
    "classes",
    "consecutive",
    "dirichlet",
    "dirichlet_equal",
    "iid",
    "inner_dirichlet",
    "mixture",
    "natural",
    "quantity_lognormal",
    "quantity_power_law",
    "quantity_skew",
    "shards",
]
