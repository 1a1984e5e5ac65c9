"""Client memory: the tensors that clients keep between rounds, in RAM up to a budget and on disk beyond it."""

from flrl.clients.index import ClientIndex
from flrl.clients.memory import FOLDER, ClientMemory, VersionedMemory
from flrl.clients.store import ClientStore

__all__ = ["FOLDER", "ClientIndex", "ClientMemory", "ClientStore", "VersionedMemory"]
