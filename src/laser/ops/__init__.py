"""Kernels on packed histories. Each op is a folder: the specification (``naive``) and the fast paths beside it."""

from laser.ops.families import kernel_families

__all__ = ["kernel_families"]
