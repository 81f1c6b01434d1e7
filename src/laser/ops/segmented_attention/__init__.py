"""Segmented target attention (STA): sigmoid-gated sums over segments of a packed history (arXiv 2602.11562)."""

from laser.ops.segmented_attention.naive import segmented_target_attention

__all__ = ["segmented_target_attention"]
