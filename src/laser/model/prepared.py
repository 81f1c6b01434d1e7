"""What is known of a batch before the dense part of a model begins.

Legend of shape suffixes: R distinct ids of a table; W its width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from laser.ops.segments import SegmentLayout


@dataclass(frozen=True)
class Prepared:
    """Rows of the tables, and the layout of the segments.

    Args:
        rows: by table [R, W], in the order of the batch's distinct ids; there may be more than it names.
        layout: with the batch's offsets; it may have more segments than its samples.
    """

    rows: dict[str, Tensor]
    layout: SegmentLayout
