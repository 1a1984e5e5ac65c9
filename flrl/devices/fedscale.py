"""Devices and their availability from the traces of FedScale.

Lai, Dai, Singapuram, Liu, Zhu, Madhyastha, Chowdhury, "FedScale: Benchmarking Model and System Performance of Federated
Learning at Scale", ICML 2022, arXiv 2105.11367. Its `client_device_capacity` has milliseconds to infer a sample and
kilobits a second for each device; its `client_behave_trace` the seconds at which devices become available and cease to
be. FedScale takes three times the inference for a sample's training.
"""

import functools
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flrl.devices.availability import Availability, Intervals
from flrl.devices.base import Devices, Table, checked
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

    def capacities(self) -> np.ndarray:
        """Milliseconds and kilobits a second of every device of the trace, float64 `[devices, 2]`."""
        rows = read(self.path, "devices.path").values()
        try:
            return np.array([[float(row["computation"]), float(row["communication"])] for row in rows])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"devices.path={self.path}: a device has no number {error}; computation and communication"
            ) from None

    def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Table:
        """The numbers of every client's device: arguments as for `Devices.table`."""
        found = self.capacities()
        ms, kbps = found[rng.integers(len(found), size=len(sizes))].T
        band = _BYTES_OF_KBIT * kbps
        with np.errstate(divide="ignore"):
            speeds = 1000.0 / (_TRAINING * ms)
        return checked(Table(speeds, band, band, np.zeros(len(sizes))))


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
        rows = [row for row in read(self.path, "devices.availability.path").values() if row.get("active")]
        try:
            parts = [_intervals(row) for row in rows]
        except (KeyError, TypeError) as error:
            raise ValueError(f"devices.availability.path={self.path}: a device has no {error}") from None
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


def _intervals(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    """The beginnings and ends of a device's intervals, in order, and its period."""
    period = float(row["finish_time"])
    start, end = (np.sort(np.asarray(row[name], np.float64)) for name in ("active", "inactive"))
    if len(end) and (not len(start) or end[0] < start[0]):  # active when the trace begins
        start = np.concatenate([[0.0], start])
    if len(start) > len(end):  # and still when it ends
        end = np.concatenate([end, [period]])
    return start, end, period


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
    if not isinstance(found, dict) or not found or not all(isinstance(row, Mapping) for row in found.values()):
        raise ValueError(f"{key}={path}: is no trace: it must have a mapping for each device")
    return found


class _Plain(pickle.Unpickler):
    """Reads plain values alone: a pickle could name any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it has a {module}.{name}, where only numbers, texts, lists and dicts may be")
