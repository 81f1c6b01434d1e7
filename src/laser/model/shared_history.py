"""LASER for many candidates of one user: whatever does not depend on the candidate is computed once.

The folded form of training multiplies every event with every candidate's query of width D. With one history for many
candidates keys and values pay: both are linear in the event, so an event is projected once, when it is first seen, and
its recency, which changes with the time of the request, is added as a projection of the recency tables::

    row(e) = [ e W_K | e W_V | e ]      row(x) = row(e) + row(age) + row(rank)     as x = e + age + rank

A candidate then costs 2 products of L x H x Q and L x D, and the segments' feed-forward network. The same function as
``Laser.forward`` in evaluation, equal up to rounding. Dense operations of fixed rank only, so that it can be exported.

Legend of shape suffixes: B candidates; L events of the one history, oldest first; N segments; W segment width; P = N W
padded events; H heads; Q query width; V value width; D width; E concatenated embedding widths; C width of a row. In
matches P counts pairs of fields, as in ``laser.model.match_gate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from laser.batch import Batch
from laser.model.laser import Laser
from laser.model.match_gate import MatchGate
from laser.model.matching import Matches
from laser.model.recency import age_bucket


class Scores(NamedTuple):
    """Of B candidates."""

    logit_B: Tensor
    gate_HLB: Tensor


class SharedHistory(nn.Module):
    """A trained LASER, for requests. It shares the weights; make it anew when they change.

    Args:
        network: in evaluation mode.
    """

    rank_rows_RC: Tensor
    age_rows_AC: Tensor
    project_DC: Tensor

    def __init__(self, network: Laser) -> None:
        super().__init__()
        self.network = network
        heads = network.sta.heads
        parts = [weight.detach().permute(1, 0, 2).flatten(1) for weight in (heads.key_HDQ, heads.value_HDV)]
        self.register_buffer("project_DC", torch.cat(parts, dim=1), persistent=False)
        recency = network.event_recency
        self.has_recency = recency is not None
        if recency is not None:
            self.register_buffer("age_rows_AC", self._rows(recency.age.weight.detach()), persistent=False)
            self.register_buffer("rank_rows_RC", self._rows(recency.rank.weight.detach()), persistent=False)

    @property
    def row_width(self) -> int:
        """C."""
        return self.project_DC.shape[1] + self.project_DC.shape[0]

    def event_rows(self, event_TE: Tensor) -> Tensor:
        """What events contribute whenever and beside whatever they are seen, [T, C]: worth keeping."""
        return self._rows(self.network.event(event_TE))

    def _rows(self, x_TD: Tensor) -> Tensor:
        return torch.cat([x_TD @ self.project_DC, x_TD], dim=1)

    def forward(
        self,
        row_LC: Tensor,
        age_L: Tensor,
        target_BE: Tensor,
        context: list[Tensor],
        open_LB: Tensor | None = None,
        batch: Batch | None = None,
    ) -> Scores:
        """Logits of B candidates, and the gates.

        Args:
            row_LC: ``event_rows`` of the history, L at least 1.
            age_L: float32 seconds from each event to the request.
            target_BE: embeddings of the candidates.
            context: [B, W] embeddings of each context field.
            open_LB: factors of the gates, to ask what the score would be if some were shut.
            batch: the same as ids, for models that match events with candidates; not needed by others.
        """
        event_PC, live_P = self.padded(row_LC, age_L)
        missing = event_PC.shape[0] - row_LC.shape[0]
        found = None if batch is None else self.network.matched.find(batch)
        open_PB = None if open_LB is None else pad(open_LB, (0, 0, missing, 0))
        matched = self.network.matched(event_PC[missing:, self.project_DC.shape[1] :], found)
        scores = self.candidates(event_PC, live_P, target_BE, context, open_PB, found, matched)
        return Scores(scores.logit_B, scores.gate_HLB[:, missing:])

    def candidates(
        self,
        event_PC: Tensor,
        live_P: Tensor,
        target_BE: Tensor,
        context: list[Tensor],
        open_PB: Tensor | None = None,
        found: Matches | None = None,
        matched: Sequence[Tensor] = (),
    ) -> Scores:
        """What depends on the candidates; gates of padded events are among the gates."""
        network = self.network
        target_BD = network.target(target_BE)
        gate_HPB = self._gates(event_PC, live_P, target_BD, found)
        if open_PB is not None:
            gate_HPB = gate_HPB * open_PB
        segment_BND = self._segments(event_PC, gate_HPB, live_P)
        user_BD = target_BD
        for layer in network.gsta.layers:
            score_BHN = layer.heads.query(user_BD) @ segment_BND.transpose(1, 2)  # type: ignore[operator,union-attr]
            user_BD = layer.after_attention(user_BD, score_BHN.softmax(-1) @ segment_BND)  # type: ignore[operator]
        groups = [user_BD, *self._readout(segment_BND), target_BD, *context]
        if network.fusion.newest_events:
            groups.append(self._newest_mean(event_PC, live_P).expand(target_BD.shape[0], -1))
        groups += [*matched, *self._evolved(event_PC, live_P, target_BD)]
        pooled_BD, _ = network.mixer(network.fusion.tokens(groups), 0, 1)
        return Scores(network._logit(pooled_BD), gate_HPB)

    def padded(self, row_LC: Tensor, age_L: Tensor) -> tuple[Tensor, Tensor]:
        """Rows with recency, padded at the old end to whole segments; and which of them are events."""
        length, width = row_LC.shape[0], self.network.segment_width
        if self.has_recency:
            rank_L = torch.arange(length - 1, -1, -1, device=row_LC.device)
            rank_L = rank_L.clamp(max=self.rank_rows_RC.shape[0] - 1)
            row_LC = row_LC + self.age_rows_AC[age_bucket(age_L)] + self.rank_rows_RC[rank_L]
        missing = (length + width - 1) // width * width - length
        live_P = pad(torch.ones(length, dtype=row_LC.dtype, device=row_LC.device), (missing, 0))
        return pad(row_LC, (0, 0, missing, 0)), live_P

    def _gates(self, event_PC: Tensor, live_P: Tensor, target_BD: Tensor, found: Matches | None) -> Tensor:
        """Gates [H, P, B], 0 for padding; softmax weights in that ablation."""
        sta = self.network.sta
        num_heads, _, query_width = sta.heads.query_HDQ.shape
        key_HPQ = event_PC[:, : num_heads * query_width].unflatten(1, (num_heads, query_width)).transpose(0, 1)
        query_HQB = torch.einsum("bd,hdq->hqb", target_BD, sta.heads.query_HDQ) * sta.heads.scale
        score_HPB = key_HPQ @ query_HQB
        if sta.slope_H is not None:
            rank_P = torch.arange(event_PC.shape[0] - 1, -1, -1, device=event_PC.device)
            score_HPB = score_HPB + sta.slope_H[:, None, None] * rank_P.float().log1p()[:, None]
        if sta.match is not None:
            assert found is not None
            score_HPB = score_HPB + self._match_scores(sta.match, found, target_BD.shape[0], event_PC.shape[0])
        if sta.gate == "sigmoid":
            return (score_HPB + sta.bias_H[:, None, None]).sigmoid() * live_P[:, None]
        score_HNWB = score_HPB.unflatten(1, (-1, sta.segment_width))
        live_NW1 = live_P.view(-1, sta.segment_width, 1) > 0
        return score_HNWB.masked_fill(~live_NW1, -torch.inf).softmax(2).flatten(1, 2)

    def _match_scores(self, gate: MatchGate, found: Matches, size: int, padded: int) -> Tensor:
        """What matches add to the scores, [H, P, B]: for the newest that match in any pair, as in ``MatchGate``."""
        match_BLP = torch.stack(found.match_E, dim=-1).unflatten(0, (size, -1))
        any_BL = match_BLP.any(2)
        newest_BL = any_BL & (any_BL.flip(1).cumsum(1).flip(1) <= gate.newest)
        score_BLH = (match_BLP & newest_BL[..., None]).to(gate.weight_PH.dtype) @ gate.weight_PH
        return pad(score_BLH.permute(2, 1, 0), (0, 0, padded - any_BL.shape[1], 0))

    def _segments(self, event_PC: Tensor, gate_HPB: Tensor, live_P: Tensor) -> Tensor:
        """Segments of every candidate, [B, N, D]."""
        sta, width = self.network.sta, self.network.segment_width
        num_heads, query_width = sta.heads.query_HDQ.shape[0], sta.heads.query_HDQ.shape[2]
        first, last = num_heads * query_width, self.project_DC.shape[1]
        value_HNWV = event_PC[:, first:last].unflatten(1, (num_heads, -1)).unflatten(0, (-1, width)).permute(2, 0, 1, 3)
        z_HNBV = gate_HPB.unflatten(1, (-1, width)).transpose(2, 3) @ value_HNWV
        z_BND = z_HNBV.permute(2, 1, 0, 3).flatten(2)
        if sta.pooling == "mean":
            z_BND = z_BND / live_P.view(-1, width).sum(1)[:, None]
        segment_BND = sta.normed(z_BND)
        recency = self.network.segment_recency
        if recency is None:
            return segment_BND
        rank_N = torch.arange(segment_BND.shape[1] - 1, -1, -1, device=segment_BND.device)
        return segment_BND + recency.rank(rank_N.clamp(max=recency.rank.num_embeddings - 1))

    def _readout(self, segment_BND: Tensor) -> list[Tensor]:
        """The maximum over segments, the newest of them and means over windows, zeros where there are fewer."""
        fusion = self.network.fusion
        found = [segment_BND.amax(1)] if fusion.segment_maximum else []
        padded_BND = pad(segment_BND, (0, 0, fusion.newest_segments, 0))
        found += [padded_BND[:, -1 - rank] for rank in range(fusion.newest_segments)]
        if not fusion.window_ends:
            return found
        rank_N = torch.arange(segment_BND.shape[1] - 1, -1, -1, device=segment_BND.device)
        bounds = zip([0, *fusion.window_ends], [*fusion.window_ends, torch.iinfo(torch.int64).max])
        member_WN = torch.stack([(rank_N >= first) & (rank_N < end) for first, end in bounds]).to(segment_BND.dtype)
        mean_BWD = member_WN @ segment_BND / member_WN.sum(1).clamp(min=1)[:, None]
        return [*found, *mean_BWD.unbind(1)]

    def _newest(self, event_PC: Tensor, live_P: Tensor, newest: int) -> tuple[Tensor, Tensor]:
        """So many newest rows, zeros where there are fewer, and which of them are events."""
        x_PD = pad(event_PC[:, self.project_DC.shape[1] :], (0, 0, newest, 0))[-newest:]
        live_P = pad(live_P, (newest, 0))[-newest:]
        return x_PD * live_P[:, None], live_P

    def _newest_mean(self, event_PC: Tensor, live_P: Tensor) -> Tensor:
        x_PD, live_P = self._newest(event_PC, live_P, self.network.fusion.newest_events)
        return x_PD.sum(0) / live_P.sum()

    def _evolved(self, event_PC: Tensor, live_P: Tensor, target_BD: Tensor) -> list[Tensor]:
        """The interest of every candidate; the first recurrence is of the history, and done once."""
        interest = self.network.interest
        if interest is None:
            return []
        x_PD, live_P = self._newest(event_PC, live_P, self.network.newest_evolved)
        state_BPD = interest.extract(x_PD[None], live_P[None]).expand(target_BD.shape[0], -1, -1)
        return [interest.evolve(state_BPD, live_P[None] > 0, target_BD)]
