"""What an observer of a run may do, and when it is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.types import ClientReport, RoundRecord, ServerState


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What observers may know of a run.

    Attributes:
        name: the experiment's name.
        folder: the run's folder, which exists.
        seed: the run's seed.
        rounds: rounds of the whole run.
        tags: free words for dashboards.
        config: the resolved configuration, as plain dicts and lists.
        command: the command line.
        model: the controller's model.
        data: the clients' and the central samples.
        resumed_from: the run folder that the state was loaded from, or None.
        environment: what the bits come from besides the configuration, from `flrl.runs.environment`; JSON can hold it.
    """

    name: str
    folder: Path
    seed: int
    rounds: int
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    command: str
    model: BoundModel
    data: FederatedData
    resumed_from: Path | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)


class Callback:
    """An observer; every method does nothing unless overridden.

    It decides on `history` alone, so that a resumed run decides like an undisturbed one.
    """

    def setup(self, run: RunInfo) -> None:
        """Called once, before anything else."""

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Before the first round of this process; `history` holds the rounds before a resumed state."""

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        """A cohort is about to train."""

    def on_client_end(self, report: ClientReport) -> None:
        """A client of the cohort has finished."""

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """The last record of `history` is this round's."""

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        """Why the run should end here, or None."""
        return None

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """The run ends with an error, an interrupt or a signal; `state` is that of the last complete round."""

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """The last round is done."""

    def close(self) -> None:
        """Called once at the very end, whatever happened."""


class Callbacks(Callback):
    """Calls each of a list of callbacks in its order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)

    def setup(self, run: RunInfo) -> None:
        """Call `setup` of every callback, in order."""
        for callback in self.callbacks:
            callback.setup(run)

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Call `on_fit_start` of every callback, in order."""
        for callback in self.callbacks:
            callback.on_fit_start(state, history)

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        """Call `on_round_start` of every callback, in order."""
        for callback in self.callbacks:
            callback.on_round_start(round, cohort)

    def on_client_end(self, report: ClientReport) -> None:
        """Call `on_client_end` of every callback, in order."""
        for callback in self.callbacks:
            callback.on_client_end(report)

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Call `on_round_end` of every callback, in order."""
        for callback in self.callbacks:
            callback.on_round_end(state, history)

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        """The first reason that a callback gives, in order; None if none has one."""
        reasons = [callback.should_stop(history) for callback in self.callbacks]
        return next((reason for reason in reasons if reason), None)

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Call `on_exception` of every callback, in order; a failure there is noted on the error that ended the run."""
        for callback in self.callbacks:
            try:
                callback.on_exception(state, history, error)
            except Exception as second:
                error.add_note(f"then {type(callback).__name__} failed: {type(second).__name__}: {second}")

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Call `on_fit_end` of every callback, in order."""
        for callback in self.callbacks:
            callback.on_fit_end(state, history)

    def close(self) -> None:
        """Call `close` of every callback, in order, the later ones even if an earlier one fails."""
        errors = []
        for callback in self.callbacks:
            try:
                callback.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("closing callbacks", errors)
