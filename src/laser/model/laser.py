"""LASER: segmented target attention, stacked global attention, multi-resolution fusion, RankMixer (arXiv 2602.11562).

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; G segments, packed per sample;
M tokens; D width; E concatenated embedding widths.
"""

from __future__ import annotations

from laser.batch import Batch
from laser.model.costs import Costs, laser_costs
from laser.model.embeddings import total_width
from laser.model.evolution import InterestEvolution
from laser.model.fusion import Fusion, newest_of_events
from laser.model.gsta import GlobalStackedTargetAttention
from laser.model.output import ModelOutput
from laser.model.padding import pad_to
from laser.model.prepared import Prepared
from laser.model.rankmixer import SparseFeedForward
from laser.model.recency import Recency, SegmentRecency
from laser.model.sequence_model import Head, SequenceModel
from laser.model.sta import Gate, Pooling, SegmentedTargetAttention
from laser.model.window_means import ends_in_segments
from laser.ops.segmented_attention.regime import Regime
from laser.schema import Schema


class Laser(SequenceModel):
    """The model. Defaults are the paper's published or inferred settings; the rest is our choice.

    Args:
        schema: of the prepared data set.
        width: of events, target and segments (paper: 128).
        segment_width: events per segment (paper: 10).
        num_heads: heads of both attentions (paper: 2).
        query_width: width of queries and keys per head in the segmented attention (paper: 16).
        num_layers: layers of the global attention (paper: 2).
        gate: "sigmoid" (paper), or "softmax" over each segment, the paper's ablation.
        gate_bias: initial bias of the gates; null is -log(segment_width).
        score_scale: factor of the scores before the gate; null is 1/sqrt(query_width).
        segment_pooling: "sum" of the gated events of a segment, or their "mean".
        segment_ffn_multiple: hidden width of the segments' feed-forward network in units of width; 0 leaves it out.
        segment_layer_norm: normalise segments.
        global_ffn_multiple: hidden width of the global attention's feed-forward network in units of width.
        recency: where recency embeddings are added: "none", to each event ("item"), to each "segment", or "both".
        recency_ranks: events told apart by their rank from the newest; older ones share one embedding.
        segment_maximum: give the maximum over segments to the mixer.
        newest_segments: number of newest segments given to the mixer one by one.
        segment_windows: events of windows of recency, newest first, such as [10, 40, 150]: the mixer is given the mean
            over the segments of each, and of all that is older (not in the paper); null leaves them out.
        newest_events: number of newest events whose mean is given to the mixer; 0 leaves it out.
        newest_evolved: number of newest events over which an interest evolves, in two recurrences, whose last state is
            given to the mixer (DIEN's, not in the paper); 0 leaves it out.
        match: field of the target or context by field of the history, both on one table: for each pair the mixer is
            also given the mean of the newest events that equal the target there, and their number (not in the paper).
        match_newest: newest matching events that are averaged.
        match_gate: gates also know which of those events match, by a learned weight per pair and head.
        gate_rank_bias: the bias of the gates has a learned slope in log(1 + rank from the newest event).
        regime: form of the segmented attention, the same function either way: "absorbed" or "projected"; null takes the
            cheaper for each batch.
        head: network over the tokens: "rankmixer" (paper), or "tokenmixer_large", "dcnv2" or "final_mlp", which take
            the options of the mixer for their own sizes.
        mixer_tokens: tokens of the head; must divide mixer_width where tokens are mixed.
        mixer_width: width of its tokens.
        mixer_layers: its blocks.
        mixer_multiple: hidden width of its feed-forward networks in units of mixer_width.
        experts: experts per token; 0 for dense networks.
        expert_budget: share of experts that may be active.
        event_dropout: probability of dropping a history event (0.1 is good for small data).
        token_dropout: probability of dropping an element of the mixer's tokens (0.1 is good for small data).
        embedding_std: standard deviation of initial embeddings.
        lookup_stride: bags over which the ids of a table are spread for look-ups.
        seed: of initial table rows, dropout masks and the choice of router.
        table_device: device on which tables are created; "meta" leaves them to the training strategy, null is the CPU.

    Raises:
        ValueError: when sizes do not fit together, or the schema embeds nothing of the item.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        width: int = 128,
        segment_width: int = 10,
        num_heads: int = 2,
        query_width: int = 16,
        num_layers: int = 2,
        gate: Gate = "sigmoid",
        gate_bias: float | None = None,
        score_scale: float | None = None,
        segment_pooling: Pooling = "sum",
        segment_ffn_multiple: int = 4,
        segment_layer_norm: bool = True,
        global_ffn_multiple: int = 4,
        recency: Recency = "item",
        recency_ranks: int = 1024,
        segment_maximum: bool = True,
        newest_segments: int = 4,
        segment_windows: list[int] | None = None,
        newest_events: int = 100,
        newest_evolved: int = 0,
        match: dict[str, str] | None = None,
        match_newest: int = 16,
        match_gate: bool = False,
        gate_rank_bias: bool = False,
        regime: Regime | None = None,
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
            event_recency=recency in ("item", "both"),
            recency_ranks=recency_ranks,
            event_dropout=event_dropout,
            match=match,
            match_newest=match_newest,
            embedding_std=embedding_std,
            lookup_stride=lookup_stride,
            seed=seed,
            table_device=table_device,
        )
        if match_gate and not match:
            raise ValueError("match_gate is true, but match names no pair of fields; name them or leave it out")
        if newest_evolved < 0:
            raise ValueError(f"newest_evolved is {newest_evolved}; give a number of events, or 0 to leave it out")
        self.segment_width = segment_width
        self.sta = SegmentedTargetAttention(
            width,
            segment_width=segment_width,
            num_heads=num_heads,
            query_width=query_width,
            gate=gate,
            gate_bias=gate_bias,
            score_scale=score_scale,
            pooling=segment_pooling,
            ffn_multiple=segment_ffn_multiple,
            layer_norm=segment_layer_norm,
            rank_bias=gate_rank_bias,
            match_pairs=len(self.matched.pairs) if match_gate else 0,
            match_newest=match_newest,
            regime=regime,
        )
        segment_ranks = -(-recency_ranks // segment_width)
        self.segment_recency = None
        if recency in ("segment", "both"):
            self.segment_recency = SegmentRecency(width, segment_ranks, embedding_std)
        self.gsta = GlobalStackedTargetAttention(
            width, num_layers=num_layers, num_heads=num_heads, ffn_multiple=global_ffn_multiple
        )
        self.fusion = Fusion(
            width,
            [total_width([feature]) for feature in self.embeddings.context],
            tokens=mixer_tokens,
            token_width=mixer_width,
            segment_maximum=segment_maximum,
            newest_segments=newest_segments,
            window_ends=ends_in_segments(segment_windows or [], segment_width),
            newest_events=newest_events,
            further_widths=[width + 1] * len(self.matched.pairs) + [width] * (newest_evolved > 0),
        )
        self.newest_evolved = newest_evolved
        self.interest = InterestEvolution(width) if newest_evolved else None
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

    def forward(self, batch: Batch, *, return_gates: bool = False, prepared: Prepared | None = None) -> ModelOutput:
        """Logits of a batch.

        Args:
            batch: of any size.
            return_gates: also return the gates of the segmented attention, on a detached graph.
            prepared: what was done for the batch before.
        """
        embedded = self.embeddings(batch) if prepared is None else self.embeddings.embed(batch, prepared.rows)
        target_BD = self.target(embedded.target_BE)
        x_TD = self._events(embedded, batch)
        newest = None
        if self.fusion.newest_events:
            # Attention and matches make gradients of their own, which nothing else holds.
            x_TD, newest = newest_of_events(x_TD, batch.off_U1, self.fusion.newest_events, in_place=True)
        found = self.matched.find(batch)
        segment_GD, seg_off_B1, gates = self.sta(
            x_TD,
            batch.off_U1,
            target_BD,
            batch.history_of_B,
            return_gates=return_gates,
            on_host=batch.on_host,
            found=found,
            layout=None if prepared is None else prepared.layout,
        )
        if self.segment_recency is not None:
            segment_GD = self.segment_recency(segment_GD, seg_off_B1)
        user_BD, segment_GD = self.gsta(target_BD, segment_GD, seg_off_B1)
        further = self.matched(x_TD, found)
        if self.interest is not None:
            padded = pad_to(batch, self.newest_evolved)
            further = [*further, self.interest(padded.rows(x_TD), padded.live_BL, target_BD)]
        tokens_BMD = self.fusion(
            user_BD,
            segment_GD,
            seg_off_B1,
            target_BD,
            embedded.context,
            None if newest is None else newest()[batch.history_of_B],
            further,
        )
        logit_B, auxiliary_loss = self._head(tokens_BMD, batch)
        return ModelOutput(logit_B, auxiliary_loss, gates)

    @property
    def recordable(self) -> bool:
        """Whether nothing after the look-up depends on the values of a batch, only on its sizes."""
        sta = self.sta
        plain = sta.gate == "sigmoid" and sta.pooling == "sum" and self.segment_recency is None
        return plain and not any(isinstance(module, SparseFeedForward) for module in self.modules())

    def costs(self, length: int) -> Costs:
        """Multiply-accumulates of one sample with ``length`` events, by part."""
        return laser_costs(self, length)
