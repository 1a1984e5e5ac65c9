"""What W&B has written into a run's folder: the run's id, and the rounds that are there."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER, _BLOCK, _PART_HEADER = 7, 32768, 7
_WHOLE, _LAST = 1, 4
_FOLDER = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(.+)")


def run_id(folder: Path) -> str | None:
    """The id of the newest W&B run that was logged into a folder; None if there is none."""
    found = [(path.name.removeprefix("offline-"), path) for path in (folder / "wandb").glob("*run-*-*")]
    ids = [match[1] for _, path in sorted(found) if (match := _FOLDER.fullmatch(path.name))]
    return ids[-1] if ids else None


def last_step(folder: Path, id: str) -> int:
    """The last step of a W&B run that is in its files, -1 if none is; a kill may have cost the newest ones."""
    steps = [
        record.history.step.num
        for path in sorted((folder / "wandb").glob(f"*run-*-{id}/run-{id}.wandb"))
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]
    return max(steps, default=-1)


def records(path: Path) -> Iterator[Any]:
    """The whole records of a `.wandb` file: messages `Record` in LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), _HEADER, b""
    while position + _PART_HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _PART_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _PART_HEADER])
        position += _PART_HEADER
        if kind == 0 or position + length > len(data):  # the rest of the block is empty, or the last part is torn
            position += left - _PART_HEADER
            continue
        parts += data[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            parts = b""
            yield record
