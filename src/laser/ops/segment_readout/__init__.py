"""What fusion reads off the segments beside attention: their elementwise maximum and the newest few."""

from laser.ops.segment_readout.naive import segment_readout

__all__ = ["segment_readout"]
