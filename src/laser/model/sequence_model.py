"""What LASER and its baselines share: embeddings, event vectors with recency, and the RankMixer head.

A model differs from another only in what lies between the event vectors and the head's tokens.

Legend of shape suffixes: B samples; T history events, packed; R rows; M tokens; D width; E concatenated embedding
widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from laser.batch import Batch
from laser.model.dense import linear
from laser.model.dropout import EventDropout, TokenDropout
from laser.model.embeddings import Embedded, TableEmbeddings, total_width
from laser.model.event_slots import EventSlots
from laser.model.heads import DCNv2, FinalMLP, TokenMixerLarge
from laser.model.matching import MatchedEvents
from laser.model.rankmixer import RankMixer
from laser.model.recency import EventRecency, owner, rank_from_newest
from laser.ops.linear import linear as linear_op
from laser.schema import Schema

Head = Literal["rankmixer", "tokenmixer_large", "dcnv2", "final_mlp"]
HEADS = {"tokenmixer_large": TokenMixerLarge, "dcnv2": DCNv2, "final_mlp": FinalMLP}


class SequenceModel(nn.Module):
    """Inputs of a model; ``add_head`` makes its end. Subclasses make what lies between, in this order of random draws.

    Args:
        schema: of the prepared data set.
        width: of events and target.
        event_recency: add recency embeddings to events.
        recency_ranks: events told apart by their rank from the newest.
        event_dropout: probability of dropping a history event.
        match: pairs of fields for ``MatchedEvents``.
        match_newest: newest matches that are averaged.
        embedding_std: standard deviation of initial embeddings.
        lookup_stride: bags over which the ids of a table are spread.
        seed: of initial table rows and dropout masks.
        table_device: device on which tables are created.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        width: int,
        event_recency: bool,
        recency_ranks: int,
        event_dropout: float,
        match: Mapping[str, str] | None,
        match_newest: int,
        embedding_std: float,
        lookup_stride: int,
        seed: int,
        table_device: str | None,
    ) -> None:
        super().__init__()
        self.embeddings = TableEmbeddings(
            schema,
            table_device=table_device,
            std=embedding_std,
            seed=seed,
            stride=lookup_stride,
        )
        self.event = linear(total_width(self.embeddings.history), width)
        self.target = linear(total_width(self.embeddings.target), width)
        self.event_recency = EventRecency(width, recency_ranks, embedding_std) if event_recency else None
        self.event_dropout = EventDropout(event_dropout, seed)
        self.matched = MatchedEvents(schema, match or {}, match_newest)

    def add_head(
        self,
        *,
        head: Head,
        tokens: int,
        width: int,
        num_layers: int,
        multiple: int,
        experts: int,
        budget: float,
        dropout: float,
        seed: int,
    ) -> None:
        """Make the head's network and the logit.

        Arguments as in ``RankMixer``, ``dropout`` of the tokens' elements; ``head`` may name another network.

        Raises:
            ValueError: when sizes do not fit together, or experts are asked of another head.
        """
        self.token_dropout = TokenDropout(dropout, seed)
        if head == "rankmixer":
            self.mixer: nn.Module = RankMixer(
                tokens, width, num_layers=num_layers, multiple=multiple, experts=experts, budget=budget, seed=seed
            )
        else:
            if experts:
                raise ValueError(f"experts is {experts}, which is for head rankmixer, and head is {head}; set it to 0")
            self.mixer = HEADS[head](tokens, width, num_layers=num_layers, multiple=multiple)
        self.logit = linear(self.mixer.width, 1)  # type: ignore[arg-type]

    def _events(self, embedded: Embedded, batch: Batch) -> Tensor:
        """Event vectors with recency, after dropout of whole events.

        The linear layer acts on the rows of distinct ids, not on events: it is a sum over fields. Where the batch has
        item fields by item, they are summed by item, and an event takes the sum as one row.
        """
        history_of_T = owner(batch.off_U1, batch.age_T.shape[0])
        rank_T = rank_from_newest(batch.off_U1, history_of_T)
        slots = EventSlots()
        of_items = slots if batch.item_of_T is None else EventSlots()
        fields = [*((of_items, found) for found in embedded.items), *((slots, found) for found in embedded.history)]
        bias_D: Tensor | None = self.event.bias
        weights = self.event.weight.split([found.rows_RW.shape[1] for _, found in fields], dim=1)
        for (places, found), weight_DW in zip(fields, weights, strict=True):
            # The bias goes with the first field that has exactly one value an event.
            once = found.index.dim() == 1
            rows_RD = linear_op(found.rows_RW, weight_DW, bias_D if once else None)
            places.add(rows_RD, found.index, found.weight)
            bias_D = None if once else bias_D
        if batch.item_of_T is not None:
            slots.add(of_items.sum(None), batch.item_of_T)
        if bias_D is not None:
            slots.add(bias_D[None], torch.zeros_like(rank_T))
        if self.event_recency is not None:
            for rows_RD, index_T in self.event_recency(batch.age_T, rank_T):
                slots.add(rows_RD, index_T)
        factor_T = self.event_dropout(batch.history_key_U[history_of_T], rank_T, batch.step)
        return slots.sum(factor_T)

    def _head(self, tokens_BMD: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Float32 logits of the tokens, and the mixer's auxiliary loss."""
        tokens_BMD = self.token_dropout(tokens_BMD, batch.row_B, batch.step)
        pooled_BD, auxiliary_loss = self.mixer(tokens_BMD, batch.step, batch.global_size)
        return self._logit(pooled_BD), auxiliary_loss

    def _logit(self, pooled_BD: Tensor) -> Tensor:
        # In half precision logits near 0 would be rounded to steps that AUC sees as ties.
        with torch.autocast(pooled_BD.device.type, enabled=False):
            return self.logit(pooled_BD.to(self.logit.weight.dtype)).squeeze(-1)
