"""Devices and their availability from the traces of FedScale.

Lai, Dai, Singapuram, Liu, Zhu, Madhyastha, Chowdhury, "FedScale: Benchmarking Model and System Performance of Federated
Learning at Scale", ICML 2022, arXiv 2105.11367. Its `client_device_capacity` has milliseconds to infer a sample and
kilobits a second for each device; its `client_behave_trace` the seconds at which devices become available and cease to
be. FedScale takes three times the inference for a sample's training.
"""

import functools
import io
import json
import math
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flrl.devices.availability import Availability, Intervals, check_trace
from flrl.devices.base import Devices, Table
from flrl.seeding import SERVER, generator_for

_TRAINING = 3.0
"""How many times the inference of a sample its training takes."""
_BYTES_OF_KBIT = 125.0


class FedScaleDevices(Devices):
    """Devices of a capacity trace: each client has one of them, drawn by seed.

    Args:
        path: a file with `{id: {"computation": ms, "communication": kbit/s}}`, JSON or a pickle of plain values.
        options: `availability`, `dropout` and `stragglers`, as for `Devices`.

    Raises:
        ValueError: when it is first needed, that the file is not there, or is no such trace.
    """

    def __init__(self, *, path: str, **options: Any) -> None:
        super().__init__(**options)
        self.path = path

    @functools.cached_property
    def capacities(self) -> np.ndarray:
        """Milliseconds and kilobits a second of every device of the trace, float64 `[devices, 2]`."""
        rows = read(self.path, "devices.path")
        names = ("computation", "communication")
        return np.array(
            [
                [_number(row, name, f"devices.path={self.path}: device {key}") for name in names]
                for key, row in rows.items()
            ]
        )

    def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Table:
        """The numbers of every client's device: arguments as for `Devices.table`."""
        found = self.capacities
        ms, kbps = found[rng.integers(len(found), size=len(sizes))].T
        band = _BYTES_OF_KBIT * kbps
        return Table(1000.0 / (_TRAINING * ms), band, band, np.zeros(len(sizes)))


class FedScaleAvailability(Availability):
    """Availability from a behaviour trace: each client has one of its devices, drawn by seed.

    Args:
        path: a file with `{id: {"active": [...], "inactive": [...], "finish_time": s}}`, JSON or a pickle of plain
            values. It is read when it is first needed.

    Raises:
        ValueError: when it is read, that the file is not there, or is no such trace.
    """

    def __init__(self, *, path: str) -> None:
        self.path = path

    @functools.cached_property
    def intervals(self) -> Intervals:
        """When the trace's devices are active."""
        key = f"devices.availability.path={self.path}"
        rows = read(self.path, "devices.availability.path")
        found = [_intervals(row, f"{key}: device {name}") for name, row in rows.items()]
        parts = [part for part in found if len(part[0])]
        if not any((part[0] < part[1]).any() for part in parts):
            raise ValueError(f"{key}: no device is ever active, nobody would ever be available")
        starts, ends = [part[0] for part in parts], [part[1] for part in parts]
        return Intervals(starts, ends, np.array([part[2] for part in parts]))

    def at(self, time_s: float, num_clients: int, seed: int) -> np.ndarray:
        """Whether each client's device is active at this time."""
        traces = len(self.intervals.periods)
        owner = generator_for(seed, 0, SERVER, "availability/traces").integers(traces, size=num_clients)
        return self.intervals.at(time_s, num_clients, seed, owner)

    def next_change(self, time_s: float) -> float:
        """The next time at which a device becomes active."""
        return self.intervals.next_change(time_s)


def _intervals(row: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """The beginnings and ends of a device's intervals, in order, and its period; `name` is for the message."""
    start, end = (np.sort(_numbers(row, kind, name)) for kind in ("active", "inactive"))
    if not len(start):  # it is left out
        return start, start, math.inf
    period = _number(row, "finish_time", name)
    if len(end) and end[0] < start[0]:  # active when the trace begins
        start = np.concatenate([[0.0], start])
    if len(start) > len(end):  # and still when it ends
        end = np.concatenate([end, [period]])
    check_trace(start, end, period, name)
    return start, end, period


def _numbers(row: Mapping[str, Any], key: str, name: str) -> np.ndarray:
    """A device's list of numbers, float64 `[n]`."""
    found = row.get(key)
    if isinstance(found, list | tuple) and all(_is_number(value) for value in found):
        return np.array(found, np.float64)
    raise ValueError(f"{name} has {key}={_shown(found)}: must be a list of finite numbers")


def _number(row: Mapping[str, Any], key: str, name: str) -> float:
    """A device's number."""
    found = row.get(key)
    if _is_number(found) and found > 0:  # type: ignore[operator]
        return float(found)  # type: ignore[arg-type]
    raise ValueError(f"{name} has {key}={_shown(found)}: must be a positive, finite number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: Any) -> str:
    """A value as JSON has it, shortened."""
    shown = json.dumps(value, default=repr)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def read(path: str, key: str) -> dict[Any, Mapping[str, Any]]:
    """A trace: a JSON file, or a pickle, from which plain values alone are read.

    Raises:
        ValueError: there is no such file, or it has something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{key}={path}: there is no such file; a trace of FedScale is a JSON or pickle file")
    try:
        found = json.loads(file.read_text()) if file.suffix == ".json" else _Plain(io.BytesIO(file.read_bytes())).load()
    except (ValueError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{key}={path}: is no trace: {error}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{key}={path}: is no trace: it must have a mapping for each device")
    for device, row in found.items():
        if not isinstance(row, Mapping):
            raise ValueError(f"{key}={path}: device {device} is {_shown(row)}: must be a mapping")
    return found


class _Plain(pickle.Unpickler):
    """Reads plain values alone: a pickle could name any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it has a {module}.{name}, where only numbers, texts, lists and dicts may be")
