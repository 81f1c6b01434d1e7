"""Scores requests in codes whose histories have been read: on a host or a device, in one of two ways.

"Packed": many requests with few candidates each become one batch, as in training; any model can do it. "Shared": one
request with many candidates goes through ``SharedHistory``; LASER only. Both are cut so that memory stays bounded.

Legend of shape suffixes: R requests; B candidates; L events of one history; T events, packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laser.batch import Batch
from laser.data.collate import Requests, age_seconds, assemble, with_side_info
from laser.data.histories import Slices
from laser.data.samples import Samples
from laser.model.laser import Laser
from laser.model.shared_history import Scores, SharedHistory
from laser.schema import Kind, Schema
from laser.seqvault.ragged import Ragged
from laser.serve.compiled import LEAST, Compiled
from laser.serve.embeddings import MappedEmbeddings
from laser.serve.event_rows import EventRows, Events
from laser.serve.requests import CodedRequest

SHARED_FROM = 4
"""Candidates from which on a request beside others has its history to itself."""
PACKED_SAMPLES, PACKED_EVENTS = 4096, 1 << 18
"""Most samples of a packed batch, and most events counted once for each sample."""
SHARED_FLOATS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Most values of the widest intermediate of a shared request; on a host more gains nothing."""

Piece = tuple[int, int, int]
"""Place of a request, and some of its candidates: from the first up to, without, the last."""


class Engine:
    """A model with its embeddings and item side info.

    Args:
        schema: of the data set.
        items: side info by item code.
        network: in evaluation mode on its device, with ``MappedEmbeddings``.
        device: of the network.
        cache_bytes: of event rows kept between requests.
    """

    def __init__(
        self, schema: Schema, items: dict[str, np.ndarray], network: nn.Module, device: torch.device, cache_bytes: int
    ) -> None:
        self.schema, self.items, self.network, self.device = schema, items, network, device
        embeddings: Any = network.embeddings
        assert isinstance(embeddings, MappedEmbeddings)
        self.embeddings = embeddings
        self.shared = SharedHistory(network) if isinstance(network, Laser) else None
        self.rows = EventRows(self._event_rows, schema.timestamp.name, cache_bytes)
        self.compiled: Compiled | None = None
        """In place of ``shared.candidates`` where it can be used."""

    def score(self, requests: Sequence[CodedRequest], events: Ragged) -> list[np.ndarray]:
        """Float32 probabilities [B] of each request.

        Args:
            requests: R of them.
            events: their histories, each cut at the request's time, with ids that the schema allows.
        """
        found = [np.empty(len(request), np.float32) for request in requests]
        packed: list[Piece] = []
        with torch.inference_mode():
            for place, request in enumerate(requests):
                length = int(events.lengths[place])
                alone = len(requests) == 1 or len(request) >= SHARED_FROM
                if self.shared is not None and alone and length and len(request):
                    self.score_shared(request, events.of(place), found[place])
                else:
                    packed += _pieces(place, len(request), length)
            for group in _groups(packed, events.lengths):
                self.score_packed(requests, events, group, found)
        return found

    def score_packed(
        self, requests: Sequence[CodedRequest], events: Ragged, pieces: Sequence[Piece], found: list[np.ndarray]
    ) -> None:
        """Score pieces of requests as one batch, into ``found``."""
        probability = torch.sigmoid(self.network(self.batch(requests, events, pieces)).logit_B.float()).cpu().numpy()
        first = 0
        for place, start, stop in pieces:
            found[place][start:stop] = probability[first : first + stop - start]
            first += stop - start

    def batch(self, requests: Sequence[CodedRequest], events: Ragged, pieces: Sequence[Piece]) -> Batch:
        """Pieces of requests as training sees samples, on the device."""
        places = list(dict.fromkeys(place for place, _, _ in pieces))
        parts = [requests[place].part(start, stop) for place, start, stop in pieces]
        sizes = [len(part) for part in parts]
        key, time = (np.array([getattr(requests[p], name) for p in places], np.int64) for name in ("key", "time"))
        history_of_B = np.repeat([places.index(place) for place, _, _ in pieces], sizes).astype(np.int64)
        samples = Samples(
            key[history_of_B],
            np.concatenate([part.item_B for part in parts]),
            time[history_of_B],
            np.zeros(len(history_of_B), np.uint8),
            {name: np.concatenate([part.context[name] for part in parts]) for name in parts[0].context},
        )
        histories = Requests(key, time, history_of_B, Slices.of(_chosen(events, places)), "the store")
        rows = np.arange(len(history_of_B))
        packed = assemble(self.schema, self.items, samples, histories, rows, step=0, global_size=len(rows))
        return packed.batch().to(self.device)

    def score_shared(self, request: CodedRequest, events: Events, out: np.ndarray) -> None:
        """Score one request with history, into ``out`` [B]."""
        row_LC, age_L = self.history(request, events)
        step = self.candidates_at_once(len(age_L))
        for start in range(0, len(request), step):
            part = request.part(start, start + step)
            out[start : start + step] = torch.sigmoid(self.logits(row_LC, age_L, part, events)).cpu().numpy()

    def logits(self, row_LC: Tensor, age_L: Tensor, request: CodedRequest, events: Events) -> Tensor:
        """Of all candidates of a request at once, [B]."""
        assert self.shared is not None
        whole = self.shared.network.segment_width * (LEAST - 1)
        if self.compiled is None or len(request) < LEAST or len(age_L) <= whole:
            return self.forward(row_LC, age_L, request, events).logit_B
        target_BE, context = self._candidates(request)
        return self.compiled(*self.shared.padded(row_LC, age_L), target_BE, context)

    def history(self, request: CodedRequest, events: Events) -> tuple[Tensor, Tensor]:
        """Rows [L, C] and ages [L] in seconds of a request's history."""
        age_L = age_seconds(self.schema, Slices.of(self._alone(events)), np.array([request.time], np.int64))
        return self.rows.of(request.key, events), torch.from_numpy(age_L).to(self.device)

    def forward(
        self,
        row_LC: Tensor,
        age_L: Tensor,
        request: CodedRequest,
        events: Events,
        open_LB: Tensor | None = None,
    ) -> Scores:
        """Logits and gates of all candidates of a request at once."""
        assert self.shared is not None
        target_BE, context = self._candidates(request)
        matches = self.shared.network.matched.pairs
        batch = self.batch([request], self._alone(events), [(0, 0, len(request))]) if matches else None
        return self.shared(row_LC, age_L, target_BE, context, open_LB, batch)

    def _candidates(self, request: CodedRequest) -> tuple[Tensor, list[Tensor]]:
        """Embeddings of candidates [B, E] and of their contexts."""
        target = with_side_info(self.schema, self.items, request.item_B)
        return self.embeddings.targets(self._ids(target)), self.embeddings.contexts(self._ids(request.context))

    def _alone(self, events: Events) -> Ragged:
        return Ragged(events, np.array([0, len(events[self.schema.timestamp.name])]))

    def _event_rows(self, events: Events) -> Tensor:
        """Rows of events that were not seen before."""
        assert self.shared is not None
        history = with_side_info(self.schema, self.items, events[self.schema.item.name].astype(np.int64))
        history |= {feature.name: events[feature.name] for feature in self.schema.of_kind(Kind.EVENT_SIDE)}
        return self.shared.event_rows(self.embeddings.events(self._ids(history)))

    def _ids(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(ids.astype(np.int64, copy=False)) for name, ids in arrays.items()}
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def candidates_at_once(self, length: int) -> int:
        """Candidates of one request that fit into memory together, given its events."""
        assert isinstance(self.network, Laser)
        sta = self.network.sta
        widest = self.network.event.out_features * max(1, sta.ffn_multiple)
        return max(1, SHARED_FLOATS[self.device.type] // (-(-length // sta.segment_width) * widest))


def _pieces(place: int, size: int, length: int) -> list[Piece]:
    """A request in pieces that fit into a packed batch."""
    step = max(1, min(PACKED_SAMPLES, PACKED_EVENTS // max(1, length)))
    return [(place, start, min(start + step, size)) for start in range(0, size, step)]


def _groups(pieces: list[Piece], length_R: np.ndarray) -> Iterator[list[Piece]]:
    """Pieces in order, as many together as fit into a packed batch; padded to the longest history of the batch."""
    group: list[Piece] = []
    samples = longest = 0
    for piece in pieces:
        size, length = piece[2] - piece[1], int(length_R[piece[0]])
        full = samples + size > PACKED_SAMPLES or (samples + size) * max(longest, length) > PACKED_EVENTS
        if group and full:
            yield group
            group, samples, longest = [], 0, 0
        group.append(piece)
        samples, longest = samples + size, max(longest, length)
    if group:
        yield group


def _chosen(events: Ragged, places: list[int]) -> Ragged:
    """Histories of some of the requests."""
    if places == list(range(len(events))):
        return events
    length = events.lengths[places]
    offsets = np.concatenate([[0], np.cumsum(length)])
    row_T = np.arange(offsets[-1]) + np.repeat(events.offsets[places] - offsets[:-1], length)
    return Ragged({name: values[row_T] for name, values in events.fields.items()}, offsets)
