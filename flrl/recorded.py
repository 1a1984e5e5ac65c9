"""A run's folder with the digests that it has recorded, and their comparison with those of recomputed rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flrl.callbacks.base import Callback
from flrl.callbacks.run_folder import digest_row
from flrl.layout import ParameterLayout
from flrl.recipe import Recipe
from flrl.runs.checkpoint import checkpoint_path, load_checkpoint
from flrl.runs.integrity import check_files
from flrl.runs.rows import DIGESTS, METRICS, read_rows
from flrl.types import RoundRecord, ServerState

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recorded:
    """The digests in a run's folder.

    Attributes:
        folder: the run's folder.
        digests: digest of the model after each round, by round.
        details: rows of `digests.jsonl` by round; may be incomplete.
    """

    folder: Path
    digests: Mapping[int, str]
    details: Mapping[int, Row]

    @classmethod
    def read(cls, folder: Path) -> "Recorded":
        """Read the digests in a run's folder.

        Raises:
            ValueError: no round has been completed.
        """
        digests = {row["round"]: row["digest"] for row in read_rows(folder / METRICS) if row["round"] > 0}
        if not digests:
            raise ValueError(f"run={folder}: no round has been completed there")
        return cls(folder, digests, {row["round"]: row for row in read_rows(folder / DIGESTS)})


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run's folder, whose files belong together.

    Attributes:
        folder: the folder.
        config: the run's configuration.
        recorded: the digests of its rounds.
    """

    folder: Path
    config: Mapping[str, Any]
    recorded: Recorded

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> "SavedRun":
        """Read and check a run's folder.

        Raises:
            DamagedError: a file is damaged, or does not match another one.
            ValueError: no round has been completed, or none can be recomputed.
        """
        if _has_secure_noise({name: config.get(name) for name in ("strategy", "trainer")}):
            raise ValueError(
                f"run={folder}: privacy.secure_noise=true: its noise came from the operating system, so that no round "
                "can be recomputed"
            )
        recipe = Recipe(config)
        check_files(folder, ParameterLayout(recipe.module(), recipe.strategy().personal))
        return cls(folder, config, Recorded.read(folder))


class Comparison(Callback):
    """Compares each recomputed round with the recorded one.

    Attributes:
        differences: lines that describe the first difference; empty if there is none.
    """

    def __init__(self, recorded: Recorded, layout: ParameterLayout) -> None:
        self.differences: list[str] = []
        self._recorded, self._layout, self._folder = recorded, layout, recorded.folder

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Compare the round's digest; if it differs, find client and parameter."""
        record = history[-1]
        if record.digest == self._recorded.digests[state.round]:
            return
        self.differences.append(
            f"differs   {self._folder}  round {state.round}: "
            f"recorded {self._recorded.digests[state.round]}, recomputed {record.digest}"
        )
        found = digest_row(record, state, self._layout)
        kept = self._recorded.details.get(state.round)
        if kept is None:
            self.differences.append(f"          {DIGESTS} has nothing of this round: client and parameter are unknown")
            return
        clients = [client for client in kept["clients"] if found["clients"].get(client) != kept["clients"][client]]
        names = [name for name in kept["parameters"] if found["parameters"].get(name) != kept["parameters"][name]]
        if clients:
            self.differences.append(f"          first client: {clients[0]}{_of(clients, kept['clients'])}")
        else:
            self.differences.append("          no client's update: it is the server's step that differs")
        if names:
            size = self._size(names[0], state)
            self.differences.append(f"          first parameter: {names[0]}{_of(names, kept['parameters'])}{size}")

    def client(self, round: int, client_id: int, checksum: str) -> None:
        """Compare the checksum of one client's update.

        Raises:
            ValueError: the run has not recorded it.
        """
        kept = self._recorded.details.get(round, {}).get("clients", {}).get(str(client_id))
        if kept is None:
            raise ValueError(f"{self._folder / DIGESTS} has nothing of client {client_id} in round {round}")
        if not kept and not checksum:
            raise ValueError(
                f"client={client_id}: hides what it sends, only rounds can be compared: round={round} alone"
            )
        if checksum != kept:
            self.differences.append(
                f"differs   {self._folder}  client {client_id} in round {round}: recorded {kept}, recomputed {checksum}"
            )

    def _size(self, name: str, state: ServerState) -> str:
        """The largest difference of a parameter as text, if there is a checkpoint of the round."""
        path = checkpoint_path(self._folder, state.round)
        if not path.exists():
            return ""
        entry = next(entry for entry in self._layout.entries if entry.name == name)
        kept = load_checkpoint(path, {"model": self._layout.fingerprint}).vector
        largest = (kept[entry.slice].double() - state.vector[entry.slice].double()).abs().max()
        return f", by {float(largest):.3g} at most"


def _has_secure_noise(node: Any) -> bool:
    """Whether a mechanism below a node of a configuration draws noise from the operating system."""
    if isinstance(node, Mapping):
        return node.get("secure_noise") is True or any(map(_has_secure_noise, node.values()))
    return isinstance(node, list) and any(map(_has_secure_noise, node))


def _of(some: Sequence[str], those: Mapping[str, Any]) -> str:
    return f" ({len(some)} of {len(those)} differ)"
