"""The store of user histories: DRAM index, packed segments and a write-ahead log on disk. Needs no torch."""

from laser.seqvault.checking import Problem
from laser.seqvault.layout import Field
from laser.seqvault.ragged import Ragged
from laser.seqvault.vault import SeqVault

__all__ = ["Field", "Problem", "Ragged", "SeqVault"]
