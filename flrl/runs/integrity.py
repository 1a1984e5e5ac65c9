"""Checks that the files of a run belong together: the model, the newest checkpoint, the partition, the tables."""

import hashlib
import json
import shlex
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flrl.data.federated import partition_hash, saved_indices
from flrl.errors import DamagedError
from flrl.layout import ParameterLayout, digest
from flrl.runs.checkpoint import list_checkpoints, load_checkpoint
from flrl.runs.rows import CLIENTS, DIGESTS, METRICS, damaged_lines, read_rows

MODEL, SUMMARY, PARTITION = "model.safetensors", "summary.json", "partition.npz"
_TORN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def check_files(folder: Path, layout: ParameterLayout) -> None:
    """Check a run's files against each other.

    The final model must have the digest of `summary.json` and of the round's row in `metrics.jsonl`, and its file
    (frozen parameters and integer buffers too) the SHA-256 of the summary. The newest checkpoint must have the digest
    of its round's row, and the partition the hash that its own file, the summary and the checkpoint name.

    Raises:
        DamagedError: a file is damaged, or does not match another one; the message has both digests.
    """
    summary = _summary(folder)
    digests = _digests(folder, finished=summary is not None)
    if summary is not None:
        _agree(folder / SUMMARY, summary["digest"], digests.get(summary["rounds"]), summary["rounds"])
    if (folder / MODEL).exists():
        _check_model(folder, layout, summary, digests)
    identity = check_checkpoint(folder, list_checkpoints(folder)[-1], layout) if list_checkpoints(folder) else {}
    named = {SUMMARY: (summary or {}).get("partition"), "the newest checkpoint": identity.get("partition")}
    _check_partition(folder / PARTITION, {where: known for where, known in named.items() if known is not None})


def check_checkpoint(folder: Path, path: Path, layout: ParameterLayout) -> Mapping[str, Any]:
    """Check that a checkpoint has the digest of its round's row; returns its identity.

    Raises:
        DamagedError: it is damaged, or of another history.
    """
    try:
        state = load_checkpoint(path, {"model": layout.fingerprint})
    except DamagedError as error:
        raise DamagedError(f"{str(error).removesuffix('; nothing was changed')}{_mend(folder)}") from error
    rows = {row["round"]: row["digest"] for row in read_rows(folder / METRICS)}
    _agree(path, digest(state.vector), rows.get(state.round), state.round)
    identity: dict[str, Any] = json.loads((path / "state.json").read_text())["identity"]
    return identity


def missing_model(folder: Path) -> str:
    """Why there is no final model in a run's folder: the run has not finished, or the file has been removed."""
    if (folder / SUMMARY).exists():
        return f"{folder / MODEL} is missing, although the run has finished{_mend(folder)}"
    return f"{folder / MODEL} is missing: the run has not finished"


def _mend(folder: Path) -> str:
    command = shlex.join(["flrl-train", f"resume={folder}"])
    return f"; {command} goes on from the last good state, if there is one"


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
        return {"rounds": int(summary["rounds"]), "digest": str(summary["digest"])} | summary
    except (*_TORN, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {error}{_mend(folder)}") from error


def _digests(folder: Path, *, finished: bool) -> dict[int, str]:
    """The digest after each round; an unfinished run may have an incomplete last row, from when it was killed."""
    for name in (METRICS, DIGESTS, CLIENTS):
        path = folder / name
        lines = damaged_lines(path)
        if lines and (finished or len(lines) > 1 or path.read_bytes().endswith(b"\n")):
            raise DamagedError(f"{path}: line {lines[0]} is damaged{_mend(folder)}")
    return {row["round"]: row["digest"] for row in read_rows(folder / METRICS) if row["round"] > 0}


def _agree(path: Path, found: str, expected: str | None, round: int) -> None:
    if expected is None:
        raise DamagedError(f"{path} is of round {round}, of which {METRICS} has no row{_mend_of(path)}")
    if found != expected:
        raise DamagedError(f"{path} has digest {found}, {METRICS} names {expected} for round {round}")


def _mend_of(path: Path) -> str:
    return _mend(path.parents[1] if path.parent.name == "checkpoints" else path.parent)


def _check_model(
    folder: Path, layout: ParameterLayout, summary: Mapping[str, Any] | None, digests: Mapping[int, str]
) -> None:
    path = folder / MODEL
    found = digest(_vector(path, layout))
    if summary is not None:
        _agree(path, found, summary["digest"], summary["rounds"])
        written = hashlib.sha256(path.read_bytes()).hexdigest()
        if summary.get("model", written) != written:
            raise DamagedError(f"{path} has SHA-256 {written}, {SUMMARY} names {summary['model']}")
    elif found not in digests.values():  # a finished run that was resumed and killed still has its earlier model
        _agree(path, found, digests[max(digests)] if digests else None, max(digests, default=0))


def _vector(path: Path, layout: ParameterLayout) -> Tensor:
    """The vector of a saved model, `[layout.size]`."""
    try:
        tensors = load_file(path)
        parts = [tensors[entry.name] for entry in layout.entries]
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedError(f"{path} cannot be loaded into the run's model: {error}") from error
    for entry, part in zip(layout.entries, parts, strict=True):
        if tuple(part.shape) != entry.shape:
            raise DamagedError(
                f"{path} cannot be loaded into the run's model: {entry.name} has shape {tuple(part.shape)}, "
                f"it should have {entry.shape}"
            )
    return torch.cat([part.reshape(-1).to(layout.dtype) for part in parts])


def _check_partition(path: Path, named: Mapping[str, str]) -> None:
    try:
        with path.open("rb") as file, np.load(file) as saved:  # NumPy would not close a file that is no archive
            own = str(saved["hash"])
            found = partition_hash(ends=saved["ends"], sizes=saved["sizes"], indices=saved_indices(saved))
    except FileNotFoundError:
        raise
    except _TORN as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    for where, expected in {"it": own, **named}.items():
        if found != expected:
            raise DamagedError(f"{path} has hash {found}, {where} names {expected}")
