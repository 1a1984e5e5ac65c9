"""The key `privacy` of a configuration."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flrl.config import PrivacyConfig
from flrl.privacy.accounting import Accountant


@dataclass(frozen=True, slots=True)
class Privacy:
    """What is promised of a run's mechanism.

    Attributes:
        epsilon: the budget; None for none.
        delta: in (0, 1).
        accountant: "pld" or "rdp".
        secure_noise: whether noise is drawn from the operating system.

    Raises:
        ValueError: a setting is invalid.
    """

    epsilon: float | None = None
    delta: float = 1e-5
    accountant: Accountant = "pld"
    secure_noise: bool = False

    def __post_init__(self) -> None:
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(f"privacy.epsilon={self.epsilon}: must be positive and finite, or null for no budget")
        if not 0 < self.delta < 1:
            raise ValueError(f"privacy.delta={self.delta}: must be above 0 and below 1")
        if self.accountant not in ("pld", "rdp"):
            raise ValueError(f"privacy.accountant={self.accountant!r}: must be 'pld' or 'rdp'")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Privacy":
        """That of a resolved configuration; those of earlier versions have no such key.

        Raises:
            ValueError: a setting is invalid.
        """
        return cls(**{**asdict(PrivacyConfig()), **(config.get("privacy") or {})})
