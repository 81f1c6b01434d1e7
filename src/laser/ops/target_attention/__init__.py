"""Target attention over packed segments: one softmax per sample and head, keys and values unprojected."""

from laser.ops.target_attention.naive import segment_softmax_attention

__all__ = ["segment_softmax_attention"]
