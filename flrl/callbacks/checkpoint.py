"""Writes checkpoints that a run can be resumed from."""

from collections.abc import Mapping, Sequence
from typing import Any

from flrl.callbacks.base import Callback, RunInfo
from flrl.runs.checkpoint import prune_checkpoints, save_checkpoint
from flrl.seeding import Seeds
from flrl.types import RoundRecord, ServerState


class Checkpoint(Callback):
    """Saves the server state after rounds, at the end, and when the run is interrupted.

    Args:
        every: number of rounds between checkpoints.
        keep: number of newest checkpoints that are kept.

    Raises:
        ValueError: a setting is below 1.
    """

    def __init__(self, *, every: int = 1, keep: int = 2) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise ValueError(f"checkpoint.{name}={value}: must be at least 1")
        self.every = every
        self.keep = keep
        self._run: RunInfo

    def setup(self, run: RunInfo) -> None:
        """Note the run."""
        self._run = run

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Save if a checkpoint is due."""
        if state.round > 0 and (state.round % self.every == 0 or state.round == self._run.rounds):
            self._save(state)

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Save the last complete round."""
        if state.round > 0:
            self._save(state)

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Save the last round, which may be early."""
        if state.round > 0:
            self._save(state)

    def _save(self, state: ServerState) -> None:
        save_checkpoint(self._run.folder, state, identity_of(self._run))
        prune_checkpoints(self._run.folder, self.keep, state.memory)


def identity_of(run: RunInfo) -> Mapping[str, Any]:
    """What a run must have in common with a checkpoint to be resumed from it."""
    strategy, model = run.config["strategy"], run.config["model"]
    optimizers = {"server": (strategy.get("server_optimizer") or {}).get("_target_")}
    if run.config["trainer"].get("keep_optimizer_state"):
        optimizers["clients"] = (model.get("optimizer") or {}).get("_target_")
    seeds = Seeds.of({**run.config, "seed": run.seed})
    return {
        "model": run.model.layout.fingerprint,
        "partition": run.data.hash,
        "seed": seeds.run,
        "partition.seed": seeds.partition,
        "model_seed": seeds.model,
        "sampling_seed": seeds.sampling,
        "strategy": strategy["_target_"],
        "optimizers": optimizers,
    }
