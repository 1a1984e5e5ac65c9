"""Where the yaml tree is, and what types its top level has. Nothing here imports torch: `--help` stays fast."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
"""What torch's own kernels, oneDNN and MKL are told, so that they choose alike on every x86-64 processor with AVX2."""
CLIENT_STORE = {"_target_": "flrl.clients.ClientStore", "budget_bytes": 2**30}
"""Where client memory is kept, unless a configuration says otherwise; those of earlier runs say nothing."""
FROM_DATA = ("input_shape", "num_classes")
"""Arguments of models that are read from the dataset where a model's yaml has null for them."""
_PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside of the package, a clone beside it.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())


@dataclass
class TrainConfig:
    """The top level of `conf/train.yaml`; each group's content is checked by the constructor it names."""

    name: str = "train"
    seed: int = 0
    model_seed: int = 0
    sampling_seed: int = 0
    resume: str | None = None
    tags: list[str] = field(default_factory=list)
    optimized_metric: str | None = "test/accuracy"
    log_clients: bool = False
    holdout: float = 0.0
    on_client_failure: str = "stop"
    dataset: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    backend: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    client_store: dict[str, Any] = field(default_factory=lambda: dict(CLIENT_STORE))
    callbacks: dict[str, Any] | None = None
    logger: dict[str, Any] | None = None
    paths: dict[str, Any] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    """Values of a user's own, for other keys to interpolate; nothing else reads them."""


@dataclass
class EvaluateConfig:
    """The top level of `conf/evaluate.yaml`."""

    run: str = "???"
    round: int | None = None
    clients: bool = False
    batch_size: int = 1000
    data_dir: str | None = None
    threads: int = 1
    device: str = "cpu"


@dataclass
class VerifyConfig:
    """The top level of `conf/verify.yaml`."""

    run: str = "???"
    rounds: str | None = None
    client: int | None = None
    round: int | None = None
    data_dir: str | None = None
    backend: dict[str, Any] = field(default_factory=dict)
