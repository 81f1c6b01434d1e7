"""Multi-resolution fusion: everything known of a sample, as M tokens for the mixer (arXiv 2602.11562).

Groups, in this order: global user vector, maximum over segments, newest segments one by one (newest first), means of
segments over windows of recency if any (``laser.model.window_means``), target, each context field, mean of the newest
events, matched events if any (``laser.model.matching``), the evolved interest if any (``laser.model.evolution``).
Groups become tokens by "spreading":

    groups <= M:  every group gets its own Linear into one or more tokens; the first M mod groups get one more
    groups >  M:  neighbours are concatenated into M runs of nearly equal count, each with its own Linear into a token

so that with groups == M every group has exactly its own token, and no width is padded or cut in the middle of a group.

Legend of shape suffixes: B samples; U distinct histories; T history events, packed; G segments, packed; M tokens;
R newest segments; D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from laser.model.dense import linear
from laser.model.window_means import window_means
from laser.ops.linear import side_by_side
from laser.ops.newest_mean import joins_gradients, newest_mean
from laser.ops.segment_readout import segment_readout


class Tokens(nn.Module):
    """Maps groups of any number and widths to M tokens.

    Args:
        group_widths: width of each group, in order.
        tokens: M.
        width: of a token.
    """

    def __init__(self, group_widths: list[int], tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        count = len(group_widths)
        if count <= tokens:
            self.runs = [1] * count
            shares = [tokens // count + (i < tokens % count) for i in range(count)]
        else:
            self.runs = [count // tokens + (i < count % tokens) for i in range(tokens)]
            shares = [1] * tokens
        ends = [sum(self.runs[: i + 1]) for i in range(len(self.runs))]
        inputs = [sum(group_widths[end - run : end]) for run, end in zip(self.runs, ends)]
        self.projections = nn.ModuleList(linear(i, share * width) for i, share in zip(inputs, shares))

    def forward(self, groups: list[Tensor]) -> Tensor:
        """[B, width of group] tensors -> tokens_BMD."""
        assert len(groups) == sum(self.runs), (len(groups), self.runs)
        parts, first = [], 0
        for run in self.runs:
            parts.append(groups[first : first + run])
            first += run
        weights, biases = zip(*((projection.weight, projection.bias) for projection in self.projections), strict=True)
        return side_by_side(parts, weights, biases).view(-1, self.tokens, self.width)


class Fusion(nn.Module):
    """Collects the groups of a sample and makes tokens of them.

    Args:
        width: of user vector, segments, target and events.
        context_widths: embedding width of each context field.
        tokens: M.
        token_width: width of a token.
        segment_maximum: whether the elementwise maximum over segments is a group.
        newest_segments: R; each of the newest segments is a group. Zeros where a sample has fewer.
        window_ends: segments up to the end of each window of recency whose mean is a group; one more holds the rest.
            Empty leaves all out.
        newest_events: N; the mean over so many newest events is a group (the short sequence); 0 leaves it out.
        further_widths: width of each group that is made elsewhere.
    """

    def __init__(
        self,
        width: int,
        context_widths: list[int],
        *,
        tokens: int = 16,
        token_width: int = 256,
        segment_maximum: bool = True,
        newest_segments: int = 4,
        window_ends: Sequence[int] = (),
        newest_events: int = 100,
        further_widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.segment_maximum, self.newest_segments, self.newest_events = segment_maximum, newest_segments, newest_events
        self.window_ends = list(window_ends)
        windows = len(window_ends) + 1 if window_ends else 0
        segments = [width] * (segment_maximum + newest_segments + windows)
        groups = [width, *segments, width, *context_widths, *([width] if newest_events else []), *further_widths]
        self.tokens = Tokens(groups, tokens, token_width)

    def forward(
        self,
        user_BD: Tensor,
        segment_GD: Tensor,
        seg_off_B1: Tensor,
        target_BD: Tensor,
        context: list[Tensor],
        newest_BD: Tensor | None = None,
        further: Sequence[Tensor] = (),
    ) -> Tensor:
        """tokens_BMD of every sample; what a sample without history lacks is zero.

        ``newest_BD``, the mean of the newest events (``newest_of_events``), is given unless ``newest_events`` is 0.
        """
        groups = [user_BD]
        if self.segment_maximum or self.newest_segments:
            max_BD, newest_BRD = segment_readout(segment_GD, seg_off_B1, self.newest_segments)
            groups += [max_BD] if self.segment_maximum else []
            groups += newest_BRD.unbind(1)
        if self.window_ends:
            groups += window_means(segment_GD, seg_off_B1, self.window_ends).to(target_BD.dtype).unbind(1)
        groups += [target_BD, *context]
        if newest_BD is not None:
            groups.append(newest_BD)
        return self.tokens([*groups, *further])


def newest_of_events(
    x_TD: Tensor, off_U1: Tensor, newest: int, *, in_place: bool = False
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The events for all other uses, and what gives the mean of each history's newest, [U, D], after these.

    ``in_place`` promises that no other use hands on its gradient as that of something else (``newest_mean``).

    Where the op joins gradients it has to be called before the events are used. Elsewhere PyTorch adds gradients up in
    the reverse order of uses, and three or more have other last bits in another order: there the mean stays the use
    behind segments, encoder and matches that it has always been.
    """
    if joins_gradients(x_TD):
        x_TD, mean_UD = newest_mean(x_TD, off_U1, newest, in_place=in_place)
        return x_TD, lambda: mean_UD
    return x_TD, lambda: newest_mean(x_TD, off_U1, newest)[1]
