"""Data: sources of samples, partitions of samples among clients, and both together (`FederatedData`)."""

from flrl.data.columns import from_columns
from flrl.data.datamodule import from_datamodule, from_datasets
from flrl.data.federated import FederatedData
from flrl.data.population import PopulationSource
from flrl.data.sources import DatasetSource, Source, Splits, TensorSource

__all__ = [
    "DatasetSource", "FederatedData", "PopulationSource", "Source", "Splits", "TensorSource", "from_columns",
    "from_datamodule", "from_datasets",
]  # fmt: skip
