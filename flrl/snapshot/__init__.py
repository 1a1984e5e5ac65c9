"""What an object and all that it holds were at one moment, to be put back: so nothing leaks from client to client."""

from flrl.snapshot.shared import Shared
from flrl.snapshot.snapshot import Snapshot, refuse_changes

__all__ = ["Shared", "Snapshot", "refuse_changes"]
