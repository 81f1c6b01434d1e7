"""Matrix products on tensor cores that keep float32's precision where it matters.

Products with bfloat16 on one side take a float32 one as a sum of two bfloat16 (16 bits of mantissa, against the 8 of
the other); anything else is multiplied as sums of three bfloat16 in six passes (24 bits; three passes of TF32 are as
fast and break the project's rule of precision at D = 512).

Legend of shape suffixes: M, K, N sizes of a product [M, K] [K, N].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret
"""Triton's interpreter multiplies bfloat16 as if it were integers; there products are float32."""
PRECISION = tl.constexpr("ieee" if INTERPRETED else "bf16x6")
HALF = tl.constexpr(not INTERPRETED)


@triton.jit
def half_product(left_MK, right_KN, sum_MN):
    """sum + left right, both of one half precision, the sum in float32."""
    if HALF:
        sum_MN = tl.dot(left_MK, right_KN, sum_MN)
    else:
        sum_MN = tl.dot(left_MK.to(tl.float32), right_KN.to(tl.float32), sum_MN, input_precision="ieee")
    return sum_MN


@triton.jit
def split(x):
    """Float32 as a sum of two bfloat16."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def product(left_MK, right_KN, sum_MN, SPLIT: tl.constexpr):
    """sum + left right, at the precision of the module's description; SPLIT says that one side or both are bfloat16."""
    if SPLIT:
        if left_MK.dtype != tl.bfloat16:
            high_MK, low_MK = split(left_MK)
            sum_MN = tl.dot(low_MK, right_KN, tl.dot(high_MK, right_KN, sum_MN))
        elif right_KN.dtype != tl.bfloat16:
            high_KN, low_KN = split(right_KN)
            sum_MN = tl.dot(left_MK, low_KN, tl.dot(left_MK, high_KN, sum_MN))
        else:
            sum_MN = tl.dot(left_MK, right_KN, sum_MN)
    else:
        sum_MN = tl.dot(left_MK.to(tl.float32), right_KN.to(tl.float32), sum_MN, input_precision=PRECISION)
    return sum_MN


@triton.jit
def load_side(at, mask, SPLIT: tl.constexpr):
    """Rows as a side of products: bfloat16 as they are, anything else as float32."""
    rows = tl.load(at, mask=mask, other=0.0)
    if not SPLIT:
        rows = rows.to(tl.float32)
    return rows


def halves(dtype: torch.dtype) -> bool:
    """SPLIT of products one side of which is of this dtype."""
    return dtype == torch.bfloat16 and not INTERPRETED
