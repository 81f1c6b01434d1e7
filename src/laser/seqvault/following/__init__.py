"""Following a stream of events into a vault, each event once, whatever crashes (docs/vault_service.md)."""

from laser.seqvault.following.follower import Follower
from laser.seqvault.following.sources import Batch, EventSource

__all__ = ["Batch", "EventSource", "Follower"]
