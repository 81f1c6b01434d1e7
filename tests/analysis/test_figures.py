"""Every figure is drawn once, with a name on each axis; the pictures themselves are in docs/notebooks."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from laser.analysis import GateFile, agreement, by_recency, faithfulness, segments, silence
from laser.analysis import figures as draw

GATES = [(1, [(0.2, 0.9)] * n) for n in (14, 0, 5, 9)]
MASKED = {
    "user": np.repeat(np.arange(4), 2),
    "label": np.array([0, 1] * 4),
    "logit": np.zeros(8),
    **{f"logit_{name}": np.full(8, 0.1) for name in ("silenced", "oldest", "random", "open")},
}


@pytest.mark.parametrize("name", ["silence", "silent_segments", "mass", "weights", "effects", "by_share", "timeline"])
def test_figures_name_their_axes(write_gates: Callable[..., Path], name: str) -> None:
    gates = GateFile(write_gates(GATES, width=4))
    looked_at = {"sigmoid": segments(gates), "softmax": segments(gates)}
    effects = faithfulness(MASKED)
    figure = {
        "silence": lambda: draw.silence_by_group(silence(gates, [by_recency()])[0]),
        "silent_segments": lambda: draw.silent_segments(looked_at),
        "mass": lambda: draw.segment_mass(looked_at),
        "weights": lambda: draw.gates_against_weights(agreement(gates)),
        "effects": lambda: draw.effects({"attention": effects, "everywhere": effects}),
        "by_share": lambda: draw.effects_by_share({0.1: effects, 0.5: effects}),
        "timeline": lambda: draw.timeline(gates.sample(0), by_recency((0, 5))),
    }[name]()
    figure.savefig(io.BytesIO(), format="png")
    assert all(axes.get_xlabel() for axes in figure.axes if axes.get_label() != "<colorbar>")
    assert any(axes.get_ylabel() for axes in figure.axes) or name == "effects"
