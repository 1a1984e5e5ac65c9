"""Snapshots of an object and all that it holds, which restore it so that no state leaks from client to client."""

from flrl.snapshot.outside import Outside, own_parts
from flrl.snapshot.shared import Shared
from flrl.snapshot.snapshot import Snapshot, refuse_changes

__all__ = ["Outside", "Shared", "Snapshot", "own_parts", "refuse_changes"]
