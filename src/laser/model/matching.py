"""Events whose field equals the target's: what a candidate has in common with the history, seen before any attention.

Not in the paper; off unless pairs of fields are named. For each pair the newest events that match are averaged and all
that match are counted, so that the mixer sees the history as far as it is about this candidate.

Only integers are as many as events times samples; of the event vectors no more than the newest matches are gathered.

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; E events counted once per sample
that sees them; K values of a multi-valued feature; N newest matches; D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laser.batch import Batch
from laser.model.recency import owner
from laser.schema import Feature, Schema


@dataclass(frozen=True)
class EventsOfSamples:
    """Events of every sample, oldest first, samples in batch order; all int64.

    Args:
        off_B1: where each sample's events begin, and E.
        sample_E: the sample that each of them belongs to.
        event_E: its row in the packed histories.
        shift_B: that row less its place in E, the same for all events of a sample.
    """

    off_B1: Tensor
    sample_E: Tensor
    event_E: Tensor
    shift_B: Tensor


def events_of_samples(batch: Batch) -> EventsOfSamples:
    """The events of a batch once per sample; sizes are read on the host, so that nothing waits for a device."""
    off, history = batch.on_host or (batch.off_U1, batch.history_of_B)
    total = int(off.diff()[history].sum())
    length_B = batch.off_U1.diff()[batch.history_of_B]
    off_B1 = nn.functional.pad(length_B.cumsum(0), (1, 0))
    sample_E = owner(off_B1, total)
    shift_B = batch.off_U1[batch.history_of_B] - off_B1[:-1]
    event_E = torch.arange(total, device=off_B1.device) + shift_B[sample_E]
    return EventsOfSamples(off_B1, sample_E, event_E, shift_B)


def matches(history: Tensor, sample: Tensor, events: EventsOfSamples) -> Tensor:
    """Which events have an id in common with their sample; id 0, unknown, is common to none.

    Args:
        history: ids of the events, [T] or [T, K].
        sample: ids of the samples, [B] or [B, K].
        events: of the samples.

    Returns:
        bool [E].
    """
    here, there = history[events.event_E], sample[events.sample_E]
    if here.dim() == there.dim() == 1:
        return (here == there) & (here != 0)
    here_EK, there_EK = (ids if ids.dim() == 2 else ids[:, None] for ids in (here, there))
    same_EKK = (here_EK[:, :, None] == there_EK[:, None, :]) & (here_EK != 0)[:, :, None]
    return same_EKK.flatten(1).any(1)


def newest_matches(match_E: Tensor, events: EventsOfSamples, newest: int) -> tuple[Tensor, Tensor]:
    """Rows of each sample's newest matches, and the number of all of them.

    Returns:
        event_BN (int64 rows in the packed histories, newest first, -1 where a sample has fewer) and count_B (int64).
    """
    before_E1 = nn.functional.pad(match_E.cumsum(0), (1, 0))
    upto_B1 = before_E1[events.off_B1]
    newer_E = upto_B1[1:][events.sample_E] - before_E1[1:]
    B = events.off_B1.shape[0] - 1
    # What does not count lands in one slot behind all others.
    slot_E = torch.where(match_E & (newer_E < newest), events.sample_E * newest + newer_E, B * newest)
    event_S = torch.full((B * newest + 1,), -1, dtype=torch.int64, device=match_E.device)
    event_S = event_S.scatter(0, slot_E, events.event_E)
    return event_S[:-1].view(B, newest), upto_B1.diff()


def mean_of_rows(x_TD: Tensor, event_BN: Tensor) -> Tensor:
    """Mean over the rows of ``x_TD`` that are not -1, [B, D]; zeros where all are."""
    if x_TD.shape[0] == 0:
        # A sum of nothing, not plain zeros: a process without events must still hand on gradients.
        return x_TD.sum(0).expand(event_BN.shape[0], -1)
    within_BN = (event_BN >= 0).to(x_TD.dtype)
    x_BND = x_TD.index_select(0, event_BN.clamp(min=0).flatten()).view(*event_BN.shape, x_TD.shape[1])
    return (x_BND * within_BN[..., None]).sum(1) / within_BN.sum(1).clamp(min=1.0)[:, None]


@dataclass(frozen=True)
class Matches:
    """What was found in a batch.

    Args:
        events: of the samples.
        match_E: for each pair, which of them match.
    """

    events: EventsOfSamples
    match_E: list[Tensor]


class MatchedEvents(nn.Module):
    """One vector for each pair of fields: the mean of the newest events that match, and log(1 + count of all).

    Args:
        schema: of the prepared data set.
        match: field of the target or context by field of the history, both on the same table.
        newest: N.

    Raises:
        ValueError: when a field is not there, or the two of a pair are not on the same table.
    """

    def __init__(self, schema: Schema, match: Mapping[str, str], newest: int) -> None:
        super().__init__()
        if newest < 1:
            raise ValueError(f"match_newest is {newest}; give the number of newest matching events to average, from 1")
        self.newest = newest
        history = {feature.name: feature for feature in schema.history if feature.table}
        sample = {feature.name: feature for feature in (*schema.target, *schema.context) if feature.table}
        for here, there in match.items():
            _check_pair(history, sample, here, there)
        self.pairs = dict(match)

    def find(self, batch: Batch) -> Matches | None:
        """Which events match; ``None`` when no pair is asked for."""
        if not self.pairs:
            return None
        events = events_of_samples(batch)
        samples = batch.context | batch.target
        return Matches(events, [matches(batch.event_ids(h), samples[s], events) for h, s in self.pairs.items()])

    def forward(self, x_TD: Tensor, found: Matches | None) -> list[Tensor]:
        """[B, D + 1] for each pair, in the dtype of ``x_TD``."""
        if found is None:
            return []
        vectors = []
        for match_E in found.match_E:
            event_BN, count_B = newest_matches(match_E, found.events, self.newest)
            count_B1 = count_B.float().log1p().to(x_TD.dtype)[:, None]
            vectors.append(torch.cat([mean_of_rows(x_TD, event_BN), count_B1], dim=-1))
        return vectors


def _check_pair(history: Mapping[str, Feature], sample: Mapping[str, Feature], here: str, there: str) -> None:
    for name, known, what in ((here, history, "the history"), (there, sample, "target and context")):
        if name not in known:
            raise ValueError(
                f"match pairs {here!r} with {there!r}, but {name!r} is no embedded field of {what}; these are "
                f"{', '.join(known)}"
            )
    if history[here].table != sample[there].table:
        raise ValueError(
            f"match pairs {here!r} of table {history[here].table!r} with {there!r} of table {sample[there].table!r}, "
            "whose ids mean different things; pair fields on the same table"
        )
