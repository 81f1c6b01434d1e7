"""Why a candidate got its score: the history as the model saw it, its segments, and what the gates let through.

Legend of shape suffixes: L events of the history, oldest first; N segments; H heads; B copies of the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from laser.data.collate import with_side_info
from laser.data.segmented import segment_offsets
from laser.model.laser import Laser
from laser.schema import Kind, names
from laser.serve.bundle import IDS
from laser.serve.engine import Engine
from laser.serve.ids import Codes, read_codes
from laser.serve.requests import CodedRequest, Request
from laser.serve.scorer import Scorer


@dataclass(frozen=True)
class Segment:
    """Some consecutive events.

    Args:
        start: of its first event in the history.
        stop: one past its last.
        strength: mean gate of its events over all heads, in (0, 1).
        contribution: logit less what it would be if all gates of this segment were shut. What reaches the score
            beside the gates (the mean of the newest events) is not in it, and contributions need not add up.
    """

    start: int
    stop: int
    strength: float
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """A score and what it is made of.

    Args:
        probability: of a click.
        logit: the same before the sigmoid.
        now: time of the request in ticks.
        known_user: whether the model knows the user.
        target: raw values of the candidate and its side info; ``None`` is unknown.
        events: per field L raw values, oldest first: time, item, side info, whatever else is stored.
        age: seconds from each event to the request [L].
        gates: of each event, one per head [L][H].
        segments: oldest first.
    """

    probability: float
    logit: float
    now: int
    known_user: bool
    target: dict[str, Any]
    events: dict[str, list[Any]]
    age: list[float]
    gates: list[list[float]]
    segments: list[Segment]


class Explainer:
    """Explains single scores of a scorer whose model is LASER.

    Args:
        scorer: whose model and histories to use.

    Raises:
        ValueError: when the model has no gates.
    """

    def __init__(self, scorer: Scorer) -> None:
        if not isinstance(scorer.engine.network, Laser):
            raise ValueError(f"{type(scorer.engine.network).__name__} has no gates to show; only LASER has")
        self.scorer, self.schema = scorer, scorer.schema
        side = self.schema.of_kind(Kind.ITEM_SIDE)
        codes = dict(scorer.coder.codes) | read_codes(scorer.bundle.path / IDS, side, ())
        self.raw = {name: RawValues(code) for name, code in codes.items()}

    def explain(
        self, user: Any, candidate: Any, context: dict[str, Any] | None = None, now: int | None = None
    ) -> Explanation:
        """Score one candidate and take the score apart; arguments as in ``Request``.

        Raises:
            ValueError: as ``Scorer.score``.
        """
        scorer, engine = self.scorer, self.scorer.engine
        request = scorer.coder.request(Request(user, [candidate], context or {}, now))
        events = scorer.read([request])
        fields, length = events.of(0), int(events.lengths[0])
        gates, segments, age = np.zeros((0, 0)), [], np.zeros(0)
        if length:
            logit, gates, segments, age = _taken_apart(engine, request, fields)
        else:
            probability = float(engine.score([request], events)[0][0])
            logit = float(np.log(probability) - np.log1p(-probability))
        return Explanation(
            probability=float(1 / (1 + np.exp(-logit))),
            logit=logit,
            now=request.time,
            known_user=scorer.coder.user(user)[1] > 0,
            target=self._target(request),
            events=self._history(fields),
            age=age.tolist(),
            gates=gates.tolist(),
            segments=segments,
        )

    def _target(self, request: CodedRequest) -> dict[str, Any]:
        target = with_side_info(self.schema, self.scorer.engine.items, request.item_B)
        return {name: self.raw[name](codes)[0] for name, codes in target.items()}

    def _history(self, fields: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        item = fields[self.schema.item.name].astype(np.int64)
        joined = fields | with_side_info(self.schema, self.scorer.engine.items, item)
        ordered = [self.schema.timestamp.name, *names(self.schema.history)]
        return {name: self.raw[name](joined[name]) if name in self.raw else joined[name].tolist() for name in ordered}


class RawValues:
    """Codes of one feature -> raw values."""

    def __init__(self, codes: Codes) -> None:
        if codes.by_text is not None:
            self.by_code: dict[int, Any] = {code: text for text, code in codes.by_text.items()}
        elif codes.sorted_raw is not None and codes.sorted_code is not None:
            self.by_code = dict(zip(codes.sorted_code.tolist(), codes.sorted_raw.tolist(), strict=True))
        else:
            self.by_code = {}

    def __call__(self, codes: np.ndarray) -> list[Any]:
        """Raw values; a code that has none is "#code", 0 is ``None``, and left out of a list."""
        if codes.ndim > 1:
            return [[value for value in self(row) if value is not None] for row in codes]
        return [None if code == 0 else self._one(code) for code in codes.tolist()]

    def _one(self, code: int) -> Any:
        value = self.by_code.get(code, f"#{code}")
        return value if value != -np.inf else None  # the lowest bucket has no bound to show


def _taken_apart(
    engine: Engine, request: CodedRequest, fields: dict[str, np.ndarray]
) -> tuple[float, np.ndarray, list[Segment], np.ndarray]:
    """Logit, gates [L, H], segments and ages [L] of a request with one candidate."""
    with torch.inference_mode():
        row_LC, age_L = engine.history(request, fields)
        length = len(age_L)
        _, offsets = segment_offsets(np.array([0, length]), engine.network.segment_width)  # type: ignore[arg-type]
        whole = engine.forward(row_LC, age_L, request, fields)
        gate_LH = whole.gate_HLB[:, :, 0].T.cpu().numpy()
        logit = float(whole.logit_B[0])
        shut = _shut_logits(engine, request, fields, row_LC, age_L, offsets)
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), shut.tolist(), strict=True)
    segments = [Segment(a, b, float(gate_LH[a:b].mean()), logit - without) for a, b, without in bounds]
    return logit, gate_LH, segments, age_L.cpu().numpy()


def _shut_logits(
    engine: Engine,
    request: CodedRequest,
    fields: dict[str, np.ndarray],
    row_LC: torch.Tensor,
    age_L: torch.Tensor,
    offset_N1: np.ndarray,
) -> np.ndarray:
    """Logits [N] with all gates of the n-th segment shut: the candidate N times, each with one segment shut."""
    count, length = len(offset_N1) - 1, len(age_L)
    segment_L = np.repeat(np.arange(count), np.diff(offset_N1))
    found, step = np.zeros(count), max(1, engine.candidates_at_once(length))
    for start in range(0, count, step):
        shut = np.arange(start, min(start + step, count))
        copies = replace(
            request,
            item_B=np.repeat(request.item_B, len(shut)),
            context={name: np.repeat(codes, len(shut), axis=0) for name, codes in request.context.items()},
        )
        open_LB = torch.from_numpy((segment_L[:, None] != shut).astype(np.float32)).to(engine.device)
        found[shut] = engine.forward(row_LC, age_L, copies, fields, open_LB).logit_B.cpu().numpy()
    return found
