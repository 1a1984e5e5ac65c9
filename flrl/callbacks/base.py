"""The base class of callbacks: what they are called with, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.types import ClientReport, Metrics, RoundRecord, ServerState


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run's description for callbacks.

    Attributes:
        name: the experiment's name.
        folder: the run's folder, which exists.
        seed: the run's seed.
        rounds: number of rounds of the whole run.
        tags: tags for dashboards.
        config: the resolved configuration, as plain dicts and lists.
        command: the command line.
        model: the controller's model.
        data: the clients' samples and the central test samples.
        resumed_from: the run folder that the state was loaded from, or None.
        console: the form in which the run is shown, see `flrl.callbacks.Progress`.
        environment: what bits depend on besides the configuration, from `flrl.runs.environment`; can be written as
            JSON.
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
    console: str = "auto"
    environment: Mapping[str, Any] = field(default_factory=dict)


class Callback:
    """Base class of callbacks, whose methods do nothing.

    A callback that stops the run decides by `history` alone, so that a resumed run decides like an uninterrupted one.
    """

    def setup(self, run: RunInfo) -> None:
        """Called once, before all other methods."""

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Called before the first round of this process; `history` has the rounds before a resumed state."""

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        """Called before a cohort trains; `cohort` has the client ids, ascending."""

    def on_client_end(self, report: ClientReport) -> None:
        """Called when a client of the cohort has finished, in any order of clients."""

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Called after a round, whose record is the last one of `history`; also after an evaluation as round 0."""

    def numbers(self, round: int) -> Metrics:
        """Called before a round's record is made; returns numbers to add to it, by name."""
        return {}

    def is_last(self, round: int) -> bool:
        """Called before a round is evaluated: whether the run ends after it, whatever the evaluation says."""
        return False

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        """Called before every round; returns the reason to end the run, or None to go on."""
        return None

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Called when an error, an interrupt or a signal ends the run; `state` is that of the last complete round."""

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Called after the last round."""

    def close(self) -> None:
        """Called once at the very end, even after an error."""


class Callbacks(Callback):
    """A list of callbacks, each of which is called in order."""

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

    def numbers(self, round: int) -> Metrics:
        """The numbers of all callbacks."""
        found: dict[str, float] = {}
        for callback in self.callbacks:
            found |= callback.numbers(round)
        return found

    def is_last(self, round: int) -> bool:
        """Whether a callback ends the run after a round."""
        return any(callback.is_last(round) for callback in self.callbacks)

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        """The first reason that a callback gives, in order; None if none has one."""
        reasons = [callback.should_stop(history) for callback in self.callbacks]
        return next((reason for reason in reasons if reason), None)

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Call `on_exception` of every callback, in order; errors of callbacks become notes of `error`."""
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
        """Call `close` of every callback, in order, the later ones even if an earlier one fails.

        Raises:
            ExceptionGroup: at least one has failed.
        """
        errors = []
        for callback in self.callbacks:
            try:
                callback.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("closing callbacks", errors)
