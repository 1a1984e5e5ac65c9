"""Checkpoints: a server state on disk, complete or not there at all, and valid only for its own run.

A checkpoint is a folder `round-00005` with `state.safetensors` and `state.json`. It is written under another name and
renamed once it is complete, so that a process killed at any time leaves the previous checkpoint valid. Of client memory
it holds only the index: the tensors are in segments in the run's folder `clients/`, each of which several checkpoints
may refer to. In format 1, which is still read, they were in the checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from flrl.clients import ClientIndex, ClientMemory, ClientStore, VersionedMemory
from flrl.clients.segment import sync
from flrl.errors import DamagedError
from flrl.layout import digest
from flrl.types import ServerState

FORMAT = 2
_MEMORY = "memory/"
_SEEDS = ("partition.seed", "model_seed", "sampling_seed")  # checkpoints of earlier versions have `seed` alone


def checkpoint_path(folder: Path, round: int) -> Path:
    """The path of a run's checkpoint after a round."""
    return folder / "checkpoints" / f"round-{round:05d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run's folder, oldest first, without damaged ones that were renamed."""
    paths = [path for path in (folder / "checkpoints").glob("round-*") if re.fullmatch(r"round-\d+", path.name)]
    return sorted(paths, key=round_of)


def round_of(path: Path) -> int:
    """The round after which a checkpoint was written."""
    return int(path.name.removeprefix("round-"))


def save_checkpoint(folder: Path, state: ServerState, identity: Mapping[str, Any]) -> Path:
    """Write a run's checkpoint; an existing one of this round and state is not written anew.

    Args:
        folder: the run's folder.
        state: the state to save.
        identity: what a run must have in common with the checkpoint to be resumed from it.

    Returns:
        The checkpoint's path.

    Raises:
        FileExistsError: a checkpoint of this round is there, with another state.
        ValueError: client memory is kept in another run's folder.
        OSError: it cannot be written.
    """
    path = checkpoint_path(folder, state.round)
    if isinstance(state.memory, ClientMemory):
        state.memory.open(folder)
    index = state.memory.save()
    tensors = _tensors(state, index)
    data = save(tensors)
    meta = {
        "format": FORMAT,
        "round": state.round,
        "digest": digest(state.vector),
        "sha256": hashlib.sha256(data).hexdigest(),
        "identity": dict(identity),
        "memory": index.described(),
    }
    text = json.dumps(meta, indent=2)
    if path.exists():
        if _is_of(path, json.loads(text), tensors):
            return path
        raise FileExistsError(f"{path} is already there, with another state")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_synced(partial / "state.safetensors", data)
        _write_synced(partial / "state.json", text.encode())
        os.rename(partial, path)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the space
        raise
    sync(path.parent)
    return path


def prune_checkpoints(folder: Path, keep: int, memory: VersionedMemory | None = None) -> None:
    """Delete all but the newest `keep` checkpoints, and incomplete ones that a killed process has left.

    Args:
        folder: the run's folder.
        keep: number of checkpoints that are kept.
        memory: the client memory, whose files are deleted if neither it nor a kept checkpoint needs them.
    """
    for path in [*list_checkpoints(folder)[:-keep], *(folder / "checkpoints").glob(".round-*.partial")]:
        shutil.rmtree(path)
    if memory is not None:
        memory.prune(kept_indexes(folder))


def kept_indexes(folder: Path) -> list[ClientIndex]:
    """The indices of client memory of a run's checkpoints; unreadable checkpoints are skipped."""
    found = []
    for path in list_checkpoints(folder):
        try:
            meta = json.loads((path / "state.json").read_text())
            with safe_open(path / "state.safetensors", "pt") as file:
                names = [name for name in file.keys() if name.startswith(_MEMORY)]
                tensors = {name.removeprefix(_MEMORY): file.get_tensor(name) for name in names}
            found.append(ClientIndex.read(tensors, meta["memory"]))
        except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError):
            continue
    return found


def load_checkpoint(path: Path, identity: Mapping[str, Any], store: ClientStore | None = None) -> ServerState:
    """Read a checkpoint.

    Args:
        path: the checkpoint, in its run's folder.
        identity: what the checkpoint's run must have in common with this one.
        store: keeps the client memory; without it, changes of it stay in RAM.

    Raises:
        DamagedError: it is incomplete, or not a checkpoint, or a file of its client memory is missing or too short.
        ValueError: it has another format, or belongs to a run with another model, partition, seed or strategy.
    """
    meta, tensors = _read(path)
    found = {name: meta["identity"].get("seed") for name in _SEEDS} | meta["identity"]
    differing = [name for name in identity if found.get(name) != identity[name]]
    if differing:
        details = "; ".join(f"{name} was {_short(found.get(name))}, is {_short(identity[name])}" for name in differing)
        raise ValueError(f"{path} belongs to another run ({details}); nothing was changed")
    memory = _memory(path, meta, _with_prefix(tensors, _MEMORY), store or ClientStore())
    return ServerState(
        round=int(meta["round"]),
        vector=tensors["vector"],
        optimizer=_with_prefix(tensors, "optimizer/"),
        variables=_with_prefix(tensors, "variables/"),
        memory=memory,
    )


def _memory(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor], store: ClientStore) -> ClientMemory:
    """The client memory, from its index or, in format 1, from the tensors themselves."""
    if meta["format"] == 1:
        found: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            client_id, key = name.split("/", 1)
            found.setdefault(int(client_id), {})[key] = tensor
        return store.memory().updated(found)
    try:
        return store.restored(ClientIndex.read(tensors, meta["memory"]), path.parents[1])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedError(f"{path} is not a valid checkpoint: {error}; nothing was changed") from error


def _is_of(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether an existing checkpoint has the same state, wherever the files of its client memory are."""
    found, kept = _read(path)
    same = all(found[name] == meta[name] for name in ("round", "digest", "identity"))
    if found["format"] == FORMAT:
        same = same and found["memory"]["contents"] == meta["memory"]["contents"]
    first, second = (
        {n: digest(t.reshape(-1)) for n, t in some.items() if not n.startswith(_MEMORY)} for some in (kept, tensors)
    )
    return same and first == second


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's `state.json` and its tensors, checked against each other."""
    try:
        meta = json.loads((path / "state.json").read_text())
        data = (path / "state.safetensors").read_bytes()
        if meta["format"] in (1, FORMAT):
            if hashlib.sha256(data).hexdigest() != meta["sha256"]:
                raise ValueError("state.safetensors does not have the SHA-256 that state.json gives")
            tensors = load(data)
            if not isinstance(meta["identity"], dict) or round_of(path) != meta["round"] or "vector" not in tensors:
                raise ValueError("state.json does not describe it")
            return meta, tensors
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedError(f"{path} is not a valid checkpoint: {error}; nothing was changed") from error
    raise ValueError(
        f"{path} is not a valid checkpoint: its format is {meta['format']}, this version reads 1 and {FORMAT}; "
        "nothing was changed"
    )


def _tensors(state: ServerState, index: ClientIndex) -> dict[str, Tensor]:
    tensors = {"vector": state.vector}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in state.optimizer.items()}
    tensors |= {f"variables/{name}": tensor for name, tensor in state.variables.items()}
    tensors |= {f"{_MEMORY}{name}": tensor for name, tensor in index.tensors().items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text
