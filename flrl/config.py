"""The folder of the yaml tree, and the types of its top-level keys. Nothing here imports torch: `--help` stays fast."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
"""Environment variables with which torch, oneDNN and MKL choose the same kernels on all x86-64 processors with AVX2."""
CLIENT_STORE = {"_target_": "flrl.clients.ClientStore", "budget_bytes": 2**30}
"""The default client store; configurations of earlier versions have no such group."""
NOBODY = {"_target_": "flrl.adversaries.Nobody", "clients": 0, "start": 1, "stop": None}
"""The default adversary; likewise."""
NO_DEVICES = {"_target_": "flrl.devices.NoDevices"}
"""The default devices; likewise."""
FROM_DATA = ("input_shape", "num_classes")
"""Arguments of models, adversaries and strategies that are read from the dataset if their yaml has null for them."""
FILLED = ("model", "adversary", "strategy")
"""The groups that have such arguments."""
_PACKAGE = Path(__file__).parent
LOWER_IS_BETTER = ("loss", "error", "mse", "mae", "perplexity")
"""Metrics with such a word in their name are best when they are low."""
UNEQUAL, EQUAL = ("_std", "_gini"), ("_jain",)
"""Ends of the names of statistics over clients that are high where they differ, and where they are alike."""
CONSOLES = ("auto", "rich", "plain", "json", "quiet")
"""The forms in which a run is shown."""
LOG_LEVELS = ("INFO", "WARNING", "ERROR")
# In a wheel conf/ is inside of the package, in a clone beside it.
CONF_DIR = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir())


def lower_is_better(metric: str) -> bool:
    """Whether a metric of this name is best when it is low; how unequal clients are always is."""
    if metric.endswith(UNEQUAL + EQUAL):
        return metric.endswith(UNEQUAL)
    return any(word in metric.lower() for word in LOWER_IS_BETTER)


def percent(metric: str) -> bool:
    """Whether a metric is shown in %: shares of samples."""
    return any(word in metric for word in ("accuracy", "success"))


@dataclass
class TargetConfig:
    """The key `target`: the value of a metric at which a run stops."""

    metric: str | None = None
    value: float | None = None


@dataclass
class PrivacyConfig:
    """The key `privacy`: what is promised of the mechanisms that a run has."""

    epsilon: float | None = None
    delta: float = 1e-5
    accountant: str = "pld"
    secure_noise: bool = False


@dataclass
class TrainConfig:
    """The top level of `conf/train.yaml`; each group's keys are checked against the signature of its `_target_`."""

    name: str = "train"
    seed: int = 0
    model_seed: int = 0
    sampling_seed: int = 0
    resume: str | None = None
    tags: list[str] = field(default_factory=list)
    optimized_metric: str | None = "test/accuracy"
    target: TargetConfig = field(default_factory=TargetConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    log_clients: bool = False
    console: str = field(default="auto", metadata={"allowed": CONSOLES})
    log_level: str = field(default="WARNING", metadata={"allowed": LOG_LEVELS})
    holdout: float = 0.0
    root_samples: int = 0
    held_out_clients: Any = 0
    public_samples: int = 0
    on_client_failure: str = "stop"
    dataset: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    adversary: dict[str, Any] = field(default_factory=lambda: dict(NOBODY))
    devices: dict[str, Any] = field(default_factory=lambda: dict(NO_DEVICES))
    backend: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    client_store: dict[str, Any] = field(default_factory=lambda: dict(CLIENT_STORE))
    callbacks: dict[str, Any] | None = None
    logger: dict[str, Any] | None = None
    paths: dict[str, Any] = field(default_factory=dict)
    vars: dict[str, Any] = field(default_factory=dict)
    """A user's own values, which other keys may interpolate; flrl does not read them."""


@dataclass
class EvaluateConfig:
    """The top level of `conf/evaluate.yaml`."""

    run: str = "???"
    round: int | None = None
    clients: bool = False
    finetune_steps: int | None = None
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


@dataclass
class AttackConfig:
    """The top level of `conf/attack.yaml`."""

    run: str = "???"
    round: int | None = None
    client: Any = None
    seed: int = 0
    candidates: int = 1000
    device: str = "cpu"
    data_dir: str | None = None
    logger: dict[str, Any] | None = None
    attack: dict[str, Any] | None = None


@dataclass
class AuditConfig:
    """The top level of `conf/audit.yaml`."""

    run: str = "???"
    round: int | None = None
    client: int | None = None
    seed: int = 0
    candidates: int = 1000
    released: str = "last"
    confidence: float = 0.95
    guesses: list[float] = field(default_factory=lambda: [0.1, 0.5, 0.8])
    epsilon: float | None = None
    delta: float = 1e-5
    unit: str = "client"
    device: str = "cpu"
    data_dir: str | None = None
    attacks: dict[str, Any] | None = None


@dataclass
class ReportConfig:
    """The top level of `conf/report.yaml`."""

    run: str | None = None
    sweep: str | None = None
    reference: str | None = None
    seconds: float = 60.0
    data_dir: str | None = None
    threads: int = 1
    device: str = "cpu"
