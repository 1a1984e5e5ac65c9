"""The index of client memory: where each client's tensors are; checkpoints hold it instead of the tensors."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flrl.clients.segment import Kind

_COLUMNS = ("client_ids", "files", "starts", "kinds", "checksums")


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment's entry in an index.

    Attributes:
        name: name of the file in the folder `clients/`.
        nbytes: the file's length in bytes.
        data_bytes: size of its tensors in bytes.
    """

    name: str
    nbytes: int
    data_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class ClientIndex:
    """The place of each client's memory, one row per client.

    Attributes:
        client_ids: int64 `[n]`, ascending.
        files: int32 `[n]`: index in `segments` of the file that holds the client.
        starts: int64 `[n]`: position of the client's first byte in that file.
        kinds: int32 `[n]`: index in `descriptions` of the client's tensors.
        checksums: int64 `[n]`: CRC-32 of the client's bytes.
        segments: the files.
        descriptions: names, dtypes and shapes of tensors.
    """

    client_ids: Tensor
    files: Tensor
    starts: Tensor
    kinds: Tensor
    checksums: Tensor
    segments: tuple[SegmentFile, ...]
    descriptions: tuple[Kind, ...]

    @classmethod
    def of(cls, rows: Iterable[tuple[int, SegmentFile, int, Kind, int]]) -> "ClientIndex":
        """The index of clients given as (id, segment, first byte, kind, checksum), in any order.

        Raises:
            ValueError: a client is there twice.
        """
        found = sorted(rows, key=lambda row: row[0])
        segments = sorted({row[1] for row in found}, key=lambda segment: segment.name)
        descriptions = sorted({row[3] for row in found})
        file_numbers = {segment: number for number, segment in enumerate(segments)}
        kind_numbers = {kind: number for number, kind in enumerate(descriptions)}
        index = cls(
            client_ids=torch.tensor([row[0] for row in found], dtype=torch.int64),
            files=torch.tensor([file_numbers[row[1]] for row in found], dtype=torch.int32),
            starts=torch.tensor([row[2] for row in found], dtype=torch.int64),
            kinds=torch.tensor([kind_numbers[row[3]] for row in found], dtype=torch.int32),
            checksums=torch.tensor([row[4] for row in found], dtype=torch.int64),
            segments=tuple(segments),
            descriptions=tuple(descriptions),
        )
        twice = index.client_ids[1:][index.client_ids[1:] == index.client_ids[:-1]]
        if len(twice):
            raise ValueError(f"client {int(twice[0])} is in the index twice")
        return index

    def __len__(self) -> int:
        """Number of clients."""
        return len(self.client_ids)

    def rows(self) -> Iterable[tuple[int, SegmentFile, int, Kind, int]]:
        """The rows (id, segment, first byte, kind, checksum), in the order of client ids: the inverse of `of`."""
        columns = [getattr(self, name).tolist() for name in _COLUMNS]
        for client_id, file, start, kind, checksum in zip(*columns, strict=True):
            yield client_id, self.segments[file], start, self.descriptions[kind], checksum

    def only(self, client_ids: Iterable[int]) -> "ClientIndex":
        """The index of the given clients alone; those that are not in this index are ignored."""
        chosen = torch.isin(self.client_ids, torch.tensor(sorted(client_ids), dtype=torch.int64))
        part = replace(self, **{name: getattr(self, name)[chosen] for name in _COLUMNS})
        return ClientIndex.of(part.rows())

    @classmethod
    def joined(cls, parts: Sequence["ClientIndex"]) -> "ClientIndex":
        """The index of the clients of all parts.

        Raises:
            ValueError: a client is in two parts, or a file has two lengths.
        """
        index = cls.of(row for part in parts for row in part.rows())
        for one, other in zip(index.segments, index.segments[1:], strict=False):
            if one.name == other.name:
                raise ValueError(f"{one.name} has {one.nbytes} bytes in one index, {other.nbytes} in another")
        return index

    def contents(self) -> str:
        """SHA-256 of the clients' memory, wherever its files are, as 64 hexadecimal digits."""
        found = hashlib.sha256(json.dumps(self.descriptions).encode())
        for column in (self.client_ids, self.kinds, self.checksums):
            found.update(column.numpy().data)
        return found.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """The columns, by name."""
        return {name: getattr(self, name) for name in _COLUMNS}

    def described(self) -> dict[str, Any]:
        """The rest of the index besides `tensors`; can be written as JSON."""
        segments = [[segment.name, segment.nbytes, segment.data_bytes] for segment in self.segments]
        return {"segments": segments, "descriptions": self.descriptions, "contents": self.contents()}

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> "ClientIndex":
        """The index from its `tensors` and `described`.

        Raises:
            ValueError, KeyError, TypeError, IndexError: they are not those of one index.
        """
        index = cls(
            **{name: tensors[name] for name in _COLUMNS},
            segments=tuple(SegmentFile(*segment) for segment in described["segments"]),
            descriptions=tuple(
                tuple((name, dtype, tuple(shape)) for name, dtype, shape in kind) for kind in described["descriptions"]
            ),
        )
        if index.contents() != described["contents"]:
            raise ValueError("the index of client memory does not belong to it")
        return index
