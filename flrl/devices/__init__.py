"""The devices that clients train on, in virtual time: see `flrl.scheduling` for what runs on that clock."""

from flrl.devices.availability import Availability, Intervals, SineDays
from flrl.devices.base import Devices, Luck, NoDevices, Table
from flrl.devices.fedscale import FedScaleAvailability, FedScaleDevices
from flrl.devices.fleet import Dispatch, Fleet, Work
from flrl.devices.laws import Constant, Law, LogNormal, Pareto, Uniform
from flrl.devices.profiles import Profiles

__all__ = [
    "Availability",
    "Constant",
    "Devices",
    "Dispatch",
    "FedScaleAvailability",
    "FedScaleDevices",
    "Fleet",
    "Intervals",
    "Law",
    "LogNormal",
    "Luck",
    "NoDevices",
    "Pareto",
    "Profiles",
    "SineDays",
    "Table",
    "Uniform",
    "Work",
]
