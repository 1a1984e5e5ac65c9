"""Snapshots of an object and all that it holds, which restore it so that no state leaks from client to client."""

from flrl.snapshot.shared import Shared
from flrl.snapshot.snapshot import Snapshot, refuse_changes

__all__ = ["Shared", "Snapshot", "refuse_changes"]
