"""A vault as a service: Arrow Flight in front of it, and the client with the same ``read`` and ``append``."""

from laser.seqvault.service.remote import RemoteVault

__all__ = ["RemoteVault"]
