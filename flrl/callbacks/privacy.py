"""Charges rounds before they are released, reports their epsilon, and stops the run before its budget is passed."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flrl.callbacks.base import Callback, RunInfo
from flrl.errors import DamagedError
from flrl.privacy.ledger import Ledger
from flrl.privacy.mechanism import Charged
from flrl.privacy.spending import Spending
from flrl.runs.rows import PRIVACY
from flrl.types import Metrics, RoundRecord, ServerState

log = logging.getLogger(__name__)


class PrivacyLedger(Callback):
    """Keeps `privacy.jsonl`, and gives each round `privacy/epsilon` and `privacy/delta`.

    The decision to stop follows from the ledger, which has all rounds that were released, even those that a crash has
    left out of the history.

    Args:
        spending: counts the epsilon.
        rows: of the ledger of the run that is resumed.

    Raises:
        ValueError: a new run's first round passes the budget.
        DamagedError: a row of the ledger does not say who took part, and has to.
    """

    def __init__(self, spending: Spending, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.spending = spending
        self._run: RunInfo
        self._ledger: Ledger
        self._rows = list(rows)
        self._charged = spending.none()
        self._released: dict[int, set[int]] = {}
        self._stopped = False
        known = range(spending.setup.num_clients)
        for row in rows:
            if spending.mechanism.by_client and not ("clients" in row and all(c in known for c in row["clients"])):
                raise DamagedError(f"{PRIVACY}: round {row['round']} must have its clients' ids, below {len(known)}")
            self._count(row)
        first, privacy = spending.after(spending.none(), spending.cohort(1)), spending.privacy
        if not rows and not spending.within(first):
            raise ValueError(
                f"privacy.epsilon={privacy.epsilon:g}: the first round passes it (epsilon {spending.exact(first):.4g} "
                f"at privacy.delta={privacy.delta:g}); raise it or {spending.key}.noise_multiplier, or have fewer "
                "clients take part"
            )

    def setup(self, run: RunInfo) -> None:
        """Note the run."""
        self._run = run

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Begin the ledger with what has been released, and print what cannot be repeated."""
        self._ledger = Ledger.begun(self._run.folder, self._rows)
        if self.spending.mechanism.secure_noise:
            print(
                "note: privacy.secure_noise=true: noise is drawn from the operating system, so that no one can repeat "
                "this run",
                file=sys.stderr,
            )

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        """Charge the round: it is in the ledger before a client trains."""
        self._count(self._ledger.charge(round, cohort if self.spending.mechanism.by_client else None))

    def numbers(self, round: int) -> Metrics:
        """The epsilon of all that has been released, and its delta."""
        return {"privacy/epsilon": self.spending.shown(self._charged), "privacy/delta": self.spending.privacy.delta}

    def is_last(self, round: int) -> bool:
        """Whether the next round would pass the budget."""
        if self.spending.privacy.epsilon is None:
            return False
        if round + 1 in self._released and not self.spending.mechanism.secure_noise:
            return False  # it is repeated
        clients = self.spending.cohort(round + 1) if self.spending.mechanism.by_client else None
        return not self.spending.within(self.spending.after(self._charged, clients))

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        """Stop if the next round would pass the budget."""
        round = history[-1].round if history else 0
        if not self.is_last(round):
            return None
        self._stopped = True
        return f"privacy.epsilon={self.spending.privacy.epsilon} would be passed in round {round + 1}"

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Print why the run has stopped, if the budget was the reason."""
        if self._stopped and state.round < self._run.rounds:
            log.warning(
                "stopped after round %d of %d: the next round would pass privacy.epsilon=%g",
                state.round,
                self._run.rounds,
                self.spending.privacy.epsilon,
            )

    def summary(self) -> Mapping[str, Any]:
        """The section `privacy` of `summary.json`."""
        return {"privacy": self.spending.summary(self._charged)}

    def _count(self, row: Mapping[str, Any]) -> None:
        """Add a row of the ledger; a repeated round whose noise follows from the seed adds nothing but new clients."""
        round, clients = row["round"], {*row.get("clients", ())}
        first = round not in self._released or self.spending.mechanism.secure_noise
        before = set() if first else self._released[round]
        self._released[round] = before | clients
        releases, taken = self._charged.releases, _array(clients - before)
        grown = self.spending.after(self._charged, taken)
        self._charged = Charged(releases + first, grown.participations)


def _array(clients: Iterable[int]) -> np.ndarray:
    return np.array(sorted(clients), dtype=np.int64)
