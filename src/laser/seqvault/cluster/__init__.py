"""A vault spread over a cluster that speaks the Redis Cluster protocol: the same packed chunks, the same API."""

from laser.seqvault.cluster.vault import ClusterVault

__all__ = ["ClusterVault"]
