"""What a compressor's numbers become on the wire: bytes, and back.

Whole numbers are packed bits, or a Golomb-Rice code (Golomb, "Run-Length Encodings", IEEE Transactions on Information
Theory 12(3), 1966; Rice, "Some Practical Universal Noiseless Coding Techniques", JPL 79-22, 1979): of each number its
lowest k bits, and the rest in unary. The best k is chosen by the exact length. Of the gaps between sorted places, k = 0
is a bitmap. All numbers are little-endian.
"""

from typing import Any

import numpy as np
import torch

from flrl.kernels import rice_code, rice_length

Bytes = np.ndarray
"""A buffer: uint8 `[n]`."""


class Writer:
    """Joins what it is given into one buffer."""

    def __init__(self) -> None:
        self._parts: list[Bytes] = []

    def buffer(self) -> Bytes:
        """All that was written, uint8 `[n]`."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.uint8)

    def whole(self, values: "np.ndarray | list[int]", dtype: str) -> None:
        """Write whole numbers of a NumPy dtype such as "<u4"."""
        self._parts.append(np.frombuffer(np.asarray(values).astype(dtype).tobytes(), np.uint8))

    def floats(self, values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """Write float64 values `[n]` in a floating dtype, rounded to nearest; returns them rounded, float64 `[n]`."""
        if dtype == torch.float32:  # as below, in less time for few numbers
            with np.errstate(over="ignore"):
                single = values.astype(np.float32)
            self._parts.append(single.view(np.uint8))
            return single.astype(np.float64)
        found = torch.from_numpy(np.ascontiguousarray(values, np.float64)).to(dtype)
        if values.size:
            self._parts.append(found.view(torch.uint8).numpy())
        return found.double().numpy()

    def bits(self, values: np.ndarray, width: int) -> None:
        """Write numbers `[n]` from 0 to `2**width - 1` in `width` bits each, up to 32."""
        if width == 8:
            self._parts.append(values.astype(np.uint8))
        elif width and values.size:
            numbers: Any = values.astype(np.uint8 if width < 8 else np.uint32)
            single = np.empty((values.size, width), np.uint8)
            for place in range(width):
                single[:, place] = numbers >> (width - 1 - place) & 1
            self._parts.append(np.packbits(single))

    def rice(self, values: np.ndarray) -> None:
        """Write a Golomb-Rice code of numbers `[n]`, at least 0; the reader has to know n."""
        if values.size:
            self._parts.append(rice_code(np.ascontiguousarray(values, np.int64)))

    def places(self, places: np.ndarray) -> None:
        """Write ascending, different places `[n]`; the reader has to know n."""
        self.rice(_gaps(places))

    def levels(self, values: np.ndarray, largest: int) -> None:
        """Write numbers `[n]` from `-largest` to `largest` in the shortest of three ways; the reader has to know n.

        Packed bits; a Golomb-Rice code of the magnitudes and the signs of those that are not 0; the places of those
        that are not 0, with a code of their magnitudes, and their signs.
        """
        if not values.size:
            return
        sizes = np.abs(values)
        places = np.flatnonzero(sizes)
        there = sizes[places]
        width = (2 * largest).bit_length()
        gaps = _gaps(places)
        lengths = [
            values.size * width,
            rice_bits(sizes)[0] + len(places),
            32 + rice_bits(gaps)[0] + rice_bits(there - 1)[0] + len(places),
        ]
        kind = lengths.index(min(lengths))
        self.whole([kind], "u1")
        if kind == 0:
            self.bits(values + largest, width)
            return
        if kind == 1:
            self.rice(sizes)
        else:
            self.whole([len(places)], "<u4")
            self.rice(gaps)
            self.rice(there - 1)
        self.bits(values[places] < 0, 1)


class Reader:
    """Reads a buffer from its beginning, in the order in which it was written."""

    def __init__(self, buffer: Bytes) -> None:
        self._left = buffer

    def _take(self, nbytes: int) -> Bytes:
        if nbytes > len(self._left):
            raise ValueError(f"an encoded update ends {nbytes - len(self._left)} bytes too early")
        taken, self._left = self._left[:nbytes], self._left[nbytes:]
        return taken

    def end(self) -> None:
        """Raise ValueError if anything is left."""
        if len(self._left):
            raise ValueError(f"an encoded update has {len(self._left)} bytes too many")

    def whole(self, count: int, dtype: str) -> np.ndarray:
        """So many whole numbers, int64 `[count]`; "<i8" for those of 64 bits."""
        return np.frombuffer(self._take(count * np.dtype(dtype).itemsize).tobytes(), dtype).astype(np.int64)

    def floats(self, count: int, dtype: torch.dtype) -> np.ndarray:
        """So many values that were written in a dtype, float64 `[count]`."""
        if not count:
            return np.zeros(0)
        taken = torch.from_numpy(self._take(count * dtype.itemsize).copy())
        return taken.view(dtype).to(torch.float64).numpy()

    def bits(self, count: int, width: int) -> np.ndarray:
        """So many numbers of `width` bits, int64 `[count]`."""
        if not width or not count:
            return np.zeros(count, np.int64)
        taken = self._take(-(-count * width // 8))
        if width == 8:
            return taken.astype(np.int64)
        single = np.unpackbits(taken, count=count * width).reshape(count, width)
        found: Any = single[:, 0].astype(np.uint8 if width < 8 else np.uint32)
        for place in range(1, width):
            found = found << 1 | single[:, place]
        return np.asarray(found, np.int64)

    def rice(self, count: int) -> np.ndarray:
        """So many numbers of a Golomb-Rice code, int64 `[count]`."""
        if not count:
            return np.zeros(0, np.int64)
        k = int(self.whole(1, "u1")[0])
        low = self.bits(count, k)
        nbytes, stops = count // 2 + 64, np.zeros(0, np.int64)  # of the unary part, most often enough
        while len(stops) < count:
            stops = np.flatnonzero(np.unpackbits(self._left[:nbytes]))[:count]
            if nbytes >= len(self._left):
                break
            nbytes *= 2
        if len(stops) < count:
            raise ValueError(f"an encoded update has {len(stops)} of {count} numbers")
        self._take(int(stops[-1]) // 8 + 1)
        high: np.ndarray = np.diff(stops, prepend=-1) - 1 << k
        high += low
        return high

    def places(self, count: int) -> np.ndarray:
        """So many ascending places, int64 `[count]`."""
        return np.cumsum(self.rice(count) + 1) - 1

    def levels(self, count: int, largest: int) -> np.ndarray:
        """So many numbers from `-largest` to `largest`, int64 `[count]`."""
        if not count:
            return np.zeros(0, np.int64)
        kind = int(self.whole(1, "u1")[0])
        if kind == 0:
            return self.bits(count, (2 * largest).bit_length()) - largest
        found = np.zeros(count, np.int64)
        if kind == 1:
            found = self.rice(count)
            places = np.flatnonzero(found)
        else:
            number = int(self.whole(1, "<u4")[0])
            places = self.places(number)
            found[places] = self.rice(number) + 1
        found[places] *= 1 - 2 * self.bits(len(places), 1)
        return found


def rice_bits(values: np.ndarray) -> tuple[int, int]:
    """The length in bits of the best Golomb-Rice code of numbers `[n]`, at least 0, and its k."""
    if not values.size:
        return 0, 0
    length, best = rice_length(np.ascontiguousarray(values, np.int64))
    return length + 8, best


def _gaps(places: np.ndarray) -> np.ndarray:
    """How many places are left out before each of ascending places `[n]`."""
    gaps = places.copy()
    gaps[1:] -= places[:-1] + 1
    return gaps
