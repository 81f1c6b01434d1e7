"""Which form of segmented target attention costs less for a batch: by counted work and measured rates.

Both compute the same function (tests/ops/test_projected_attention.py):

- "absorbed": W_K in the query, W_V behind the sums: little work an event, much a sample (its segments times D x D);
- "projected": keys and values once an event of each history: much work an event, little a sample.

So a history with few samples is cheaper absorbed and one with many projected; where they cross depends on the widths
and on the machine. A stage takes as long as the slower of its arithmetic and its memory traffic; a form, the sum of its
stages. Backward passes repeat the stages of forward ones, so that the comparison holds for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Regime = Literal["absorbed", "projected"]
FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a batch asks for.

    Args:
        events: T, of all distinct histories.
        seen: events counted once for each sample that sees them.
        samples: B.
        width: D.
        num_heads: H.
        query_width: Q.
        segment_width: events a segment.
        itemsize: bytes of a value of the events.
    """

    events: int
    seen: int
    samples: int
    width: int = 128
    num_heads: int = 2
    query_width: int = 16
    segment_width: int = 10
    itemsize: int = FLOAT32


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of a machine, in multiply-accumulates or bytes a second; ``benchmarks/ops/regimes.py`` measures them.

    Args:
        dense: of large matrix products.
        absorbed: of the op of that form.
        projected: of the batched products of that form.
        memory: bytes read or written.
    """

    dense: float
    absorbed: float
    projected: float
    memory: float


RATES = {
    "cpu": Rates(dense=3.8e10, absorbed=2.4e9, projected=1.9e9, memory=3.5e10),
    "cuda": Rates(dense=7.1e13, absorbed=9.2e11, projected=2.5e10, memory=2.8e12),
}
"""Printed by ``benchmarks/ops/regimes.py``: one core of a Xeon, float32, and an H100, bfloat16, 2026-11-25. On the GPU
the projected form, some hundred launches of batched products, was never faster."""


def seconds(regime: Regime, load: Load, rates: Rates) -> float:
    """Estimated time of a forward pass."""
    stages = _absorbed(load, rates) if regime == "absorbed" else _projected(load, rates)
    return sum(max(macs / rate, traffic / rates.memory) for macs, rate, traffic in stages)


def cheaper(load: Load, rates: Rates) -> Regime:
    """The form of less estimated time; absorbed if equal."""
    return "projected" if seconds("projected", load, rates) < seconds("absorbed", load, rates) else "absorbed"


def choose(load: Load, device: torch.device, override: Regime | None = None) -> Regime:
    """``override``, or the cheaper form on a kind of device by the rates that are known of it."""
    return override or cheaper(load, RATES.get(device.type, RATES["cpu"]))


def load_of(off_U1: Tensor, history_of_B: Tensor, **sizes: int) -> Load:
    """Of a batch whose offsets are in host memory; ``sizes`` as in ``Load``."""
    length_U = off_U1.diff()
    return Load(events=int(off_U1[-1]), seen=int(length_U[history_of_B].sum()), samples=history_of_B.shape[0], **sizes)


Stage = tuple[float, float, float]
"""Multiply-accumulates, their rate, bytes."""


def _absorbed(load: Load, rates: Rates) -> list[Stage]:
    d, h, q, size = load.width, load.num_heads, load.query_width, load.itemsize
    segments = load.seen / load.segment_width
    return [
        (load.samples * 2 * d * h * q, rates.dense, load.samples * h * d * size),
        (load.seen * 2 * h * d, rates.absorbed, (load.events * d + segments * h * d) * size),
        (segments * d * d, rates.dense, segments * (h * d + d) * size),
    ]


def _projected(load: Load, rates: Rates) -> list[Stage]:
    d, h, q, size = load.width, load.num_heads, load.query_width, load.itemsize
    row, segments = h * q + d, load.seen / load.segment_width
    # Rows are gathered into segments as float32; scores and gates are written and read.
    gathered = load.events * row * (size + FLOAT32)
    products = load.events * row * FLOAT32 + load.seen * h * 4 * FLOAT32 + segments * d * size
    return [
        (load.events * d * row, rates.dense, load.events * (d + row) * size),
        (0.0, rates.projected, gathered),
        (load.samples * d * h * q + load.seen * row, rates.projected, products),
    ]
