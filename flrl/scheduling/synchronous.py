"""Synchronous rounds: the server waits for everybody."""

from flrl.scheduling.base import Plan, Planning, Schedule, together


class Synchronous(Schedule):
    """Every round has a cohort, and ends when all of it have sent their updates or are lost; McMahan et al., 2017."""

    needs_devices = False

    def plan(self, planning: Planning) -> Plan:
        """The cohort of the round, all of which start from the global model."""
        return together(planning, *planning.drawn())
