"""A model whose only difference to LASER is the sequence encoder: same embeddings, side info, head and trainer.

The head's tokens are made of the encoder's vectors, the target, each context field, and the mean of the newest events
(the short sequence, which LASER has, too).

Legend of shape suffixes: B samples; T history events, packed; M tokens; D width; E width of the item's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from laser.batch import Batch
from laser.model.baselines.encoder import Encoder, Inputs
from laser.model.costs import Costs, Form, whole_costs
from laser.model.embeddings import total_width
from laser.model.fusion import Tokens, newest_of_events
from laser.model.output import ModelOutput
from laser.model.sequence_model import Head, SequenceModel
from laser.ops.gather_sum import gather_sum
from laser.schema import Schema


class EncoderModel(SequenceModel):
    """Any sequence encoder between LASER's inputs and its head. Options have the names and defaults of ``Laser``.

    Args:
        schema: of the prepared data set.
        encoder: class of the encoder and its options, such as ``laser.model.baselines.din.DIN``; it is given the width
            of events and target, and that of the item's embeddings.
        width: of events and target.
        recency: "item" adds recency embeddings to each event, "none" does not.
        recency_ranks: events told apart by their rank from the newest; older ones share one embedding.
        newest_events: number of newest events whose mean is given to the mixer; 0 leaves it out.
        match: field of the target or context by field of the history, both on one table: for each pair the mixer is
            also given the mean of the newest events that equal the target there, and their number (not in the paper).
        match_newest: newest matching events that are averaged.
        head: network over the tokens: "rankmixer" (paper), or "tokenmixer_large", "dcnv2" or "final_mlp", which take
            the options of the mixer for their own sizes.
        mixer_tokens: tokens of the head; must divide mixer_width where tokens are mixed.
        mixer_width: width of its tokens.
        mixer_layers: its blocks.
        mixer_multiple: hidden width of its feed-forward networks in units of mixer_width.
        experts: experts per token; 0 for dense networks.
        expert_budget: share of experts that may be active.
        event_dropout: probability of dropping a history event.
        token_dropout: probability of dropping an element of the mixer's tokens.
        embedding_std: standard deviation of initial embeddings.
        lookup_stride: bags over which the ids of a table are spread for look-ups.
        seed: of initial table rows, dropout masks and the choice of router.
        table_device: device on which tables are created; "meta" leaves them to the training strategy, null is the CPU.

    Raises:
        ValueError: when sizes do not fit together, when the schema embeds nothing of the item, or when neither encoder
            nor head would see the history.
    """

    def __init__(
        self,
        schema: Schema,
        encoder: Callable[[int, int], Encoder],
        *,
        width: int = 128,
        recency: Literal["none", "item"] = "item",
        recency_ranks: int = 1024,
        newest_events: int = 100,
        match: dict[str, str] | None = None,
        match_newest: int = 16,
        head: Head = "rankmixer",
        mixer_tokens: int = 16,
        mixer_width: int = 256,
        mixer_layers: int = 2,
        mixer_multiple: int = 4,
        experts: int = 0,
        expert_budget: float = 0.25,
        event_dropout: float = 0.0,
        token_dropout: float = 0.0,
        embedding_std: float = 0.02,
        lookup_stride: int = 1024,
        seed: int = 0,
        table_device: str | None = None,
    ) -> None:
        super().__init__(
            schema,
            width=width,
            event_recency=recency == "item",
            recency_ranks=recency_ranks,
            event_dropout=event_dropout,
            match=match,
            match_newest=match_newest,
            embedding_std=embedding_std,
            lookup_stride=lookup_stride,
            seed=seed,
            table_device=table_device,
        )
        self.newest_events = newest_events
        self.encoder = encoder(width, total_width(self.embeddings.target))
        if not self.encoder.vectors and not newest_events:
            raise ValueError(
                f"encoder {type(self.encoder).__name__} gives the head no vector and newest_events is 0; "
                "set newest_events to the number of events that the head shall see"
            )
        groups = [width] * (self.encoder.vectors + 1)
        groups += [total_width([feature]) for feature in self.embeddings.context]
        groups += [width] if newest_events else []
        groups += [width + 1] * len(self.matched.pairs)
        self.fusion = Tokens(groups, mixer_tokens, mixer_width)
        self.add_head(
            head=head,
            tokens=mixer_tokens,
            width=mixer_width,
            num_layers=mixer_layers,
            multiple=mixer_multiple,
            experts=experts,
            budget=expert_budget,
            dropout=token_dropout,
            seed=seed,
        )

    def forward(self, batch: Batch, *, return_gates: bool = False) -> ModelOutput:
        """Logits of a batch; these models have no gates, whatever ``return_gates`` says."""
        embedded = self.embeddings(batch)
        target_BD = self.target(embedded.target_BE)
        x_TD = self._events(embedded, batch)
        newest = None
        if self.newest_events:
            x_TD, newest = newest_of_events(x_TD, batch.off_U1, self.newest_events)
        item_TE = None
        if self.encoder.reads_items:
            item_TE = torch.cat([found.vectors() for found in embedded.items], dim=-1)
            item_TE = item_TE if batch.item_of_T is None else gather_sum(item_TE, batch.item_of_T[:, None])
        encoded = self.encoder(Inputs(x_TD, target_BD, item_TE, embedded.target_BE, batch))
        groups = [*encoded.vectors, target_BD, *embedded.context]
        if newest is not None:
            groups.append(newest()[batch.history_of_B])
        groups += self.matched(x_TD, self.matched.find(batch))
        logit_B, mixer_loss = self._head(self.fusion(groups), batch)
        losses = [loss for loss in (mixer_loss, encoded.auxiliary_loss) if loss is not None]
        return ModelOutput(logit_B, sum(losses[1:], losses[0]) if losses else None)

    def costs(self, length: int, form: Form = "folded") -> Costs:
        """Multiply-accumulates of one sample with ``length`` events, by part."""
        return whole_costs(self, length, Costs({"encoder": self.encoder.macs(length, form)}))
