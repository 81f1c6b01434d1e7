"""RankMixer: parameter-free token mixing and one feed-forward network per token.

S = LN(TokenMix(X) + X);  X' = LN(PFFN(S) + S);  mean over tokens. The network of a token is dense, or sparse: experts
behind a ReLU router, with "dense training, sparse inference" (DTSI) routing.

Legend of shape suffixes: B samples; M tokens; D width; X experts per token; F hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laser.model.dense import ResidualNorm
from laser.ops.feed_forward import grouped_feed_forward
from laser.ops.keep_factor.naive import scalar_hash
from laser.ops.linear import grouped_linear
from laser.ops.mixed_norm import mixed_norm

COEFFICIENT_FACTOR = 1.2
COEFFICIENT_MINIMUM, COEFFICIENT_MAXIMUM = 1e-8, 0.1
"""Where the coefficient starts, and its bounds (our choice). Routers answer over hundreds of steps, in which a free
coefficient grows a thousandfold past what is needed, silences every expert, and then shrinks until it is stuck at 0."""
_ROUTER_SITE = 3


def check_mixing(tokens: int, width: int) -> None:
    """Raise ValueError when tokens of this width cannot be mixed."""
    if width % tokens:
        raise ValueError(
            f"mixer_width {width} is not a multiple of mixer_tokens {tokens}; "
            "token mixing cuts every token into that many slices"
        )


def per_token_weight(tokens: int, inputs: int, outputs: int) -> nn.Parameter:
    """[tokens, inputs, outputs], each slice U(-1/sqrt(inputs), 1/sqrt(inputs)).

    The fan is explicit because ``torch.nn.init`` would take a 3-D parameter for a convolution.
    """
    bound = inputs**-0.5
    return nn.Parameter(torch.empty(tokens, inputs, outputs).uniform_(-bound, bound))


def per_token_linear(x_BMD: Tensor, weight_MDF: Tensor, bias_MF: Tensor) -> Tensor:
    """M independent Linear layers as one batched product: [B, M, D] -> [B, M, F]."""
    return grouped_linear(x_BMD, weight_MDF, bias_MF)


class PerTokenFeedForward(nn.Module):
    """W2_m GELU(W1_m s_m + b1_m) + b2_m for each token m.

    Args:
        tokens: M.
        width: D.
        hidden: F.
    """

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.weight1_MDF = per_token_weight(tokens, width, hidden)
        self.bias1_MF = nn.Parameter(torch.zeros(tokens, hidden))
        self.weight2_MFD = per_token_weight(tokens, hidden, width)
        self.bias2_MD = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, x_BMD: Tensor) -> Tensor:
        """[B, M, D] -> [B, M, D]."""
        return grouped_feed_forward(x_BMD, self.weight1_MDF, self.bias1_MF, self.weight2_MFD, self.bias2_MD)


class SparseFeedForward(nn.Module):
    """Experts per token behind ReLU gates: v_m = sum_x ReLU(router(s_m))_x expert_mx(s_m).

    Together the experts of a token have the parameters of the dense network. All are computed; a gate of 0 silences.

    Two routers: in training one of them, chosen by a hash of the step, routes the whole step, so that both learn from
    the task (how the paper combines them is not published: our choice); evaluation uses the sparse one. An L1 term on
    the sparse router's gates is scaled by a coefficient that moves by a factor of 1.2 a step, within bounds, towards
    the activity budget.

    The coefficient's next move depends on ``activity_2``, the (active, all) gates of the last training step on this
    process; with several processes the trainer sums that buffer over them after each step.

    Args:
        tokens: M.
        width: D.
        hidden: F over all experts of a token.
        experts: X; divides F.
        budget: share of gates that may be active.
        seed: of the choice of router.
        layer: position of the block, part of that choice.

    Raises:
        ValueError: when ``experts`` does not divide ``hidden`` or the budget is not in (0, 1].
    """

    coefficient: Tensor
    activity_2: Tensor

    def __init__(
        self, tokens: int, width: int, hidden: int, *, experts: int, budget: float, seed: int, layer: int
    ) -> None:
        super().__init__()
        if hidden % experts:
            raise ValueError(
                f"experts is {experts}, which does not divide the hidden width {hidden} (mixer_multiple x mixer_width)"
            )
        if not 0.0 < budget <= 1.0:
            raise ValueError(f"expert_budget is {budget}; expected a share of active experts in (0, 1]")
        self.experts, self.budget, self.seed, self.layer = experts, budget, seed, layer
        self.networks = PerTokenFeedForward(tokens * experts, width, hidden // experts)
        self.dense_router_MDX = per_token_weight(tokens, width, experts)
        self.sparse_router_MDX = per_token_weight(tokens, width, experts)
        self.dense_bias_MX = nn.Parameter(torch.zeros(tokens, experts))
        self.sparse_bias_MX = nn.Parameter(torch.zeros(tokens, experts))
        self.register_buffer("coefficient", torch.tensor(COEFFICIENT_MINIMUM))
        self.register_buffer("activity_2", torch.zeros(2))

    def forward(self, x_BMD: Tensor, step: int, global_size: int) -> tuple[Tensor, Tensor | None]:
        """Output [B, M, D] and, in training, the weighted L1 term over ``global_size``."""
        B, M, D = x_BMD.shape
        sparse_BMX = per_token_linear(x_BMD, self.sparse_router_MDX, self.sparse_bias_MX).relu()
        gate_BMX = sparse_BMX
        # The gates of both routers are always in the graph, so that every step has a gradient for every parameter.
        if self.training:
            dense_BMX = per_token_linear(x_BMD, self.dense_router_MDX, self.dense_bias_MX).relu()
            use_dense = scalar_hash(self.seed, _ROUTER_SITE, self.layer, step) & 1
            gate_BMX = dense_BMX + 0.0 * sparse_BMX if use_dense else sparse_BMX + 0.0 * dense_BMX
        expert_BMXD = self.networks(x_BMD.repeat_interleave(self.experts, dim=1)).view(B, M, self.experts, D)
        output_BMD = (gate_BMX[..., None] * expert_BMXD).sum(2)
        return output_BMD, self._regulariser(sparse_BMX, global_size) if self.training else None

    def _regulariser(self, gate_BMX: Tensor, global_size: int) -> Tensor:
        with torch.no_grad():
            active, total = self.activity_2.unbind()
            # Nothing is known before the first step, nor after one without samples: stay.
            direction = torch.where(total > 0, torch.sign(active - self.budget * total), 0.0)
            self.coefficient.mul_(COEFFICIENT_FACTOR**direction).clamp_(COEFFICIENT_MINIMUM, COEFFICIENT_MAXIMUM)
            self.activity_2[0] = (gate_BMX > 0).sum()
            self.activity_2[1] = gate_BMX.numel()
        # A copy, because the buffer may move again before this graph's backward pass.
        return self.coefficient.clone() * gate_BMX.float().sum() / max(global_size, 1)


class MixerBlock(nn.Module):
    """One block: token mixing, then the per-token networks, each with residual and post-norm.

    Under autocast the norms leave tokens in half precision, but the last one of the last block, whose tokens are only
    added up: the gradient of a sum need not be written for every token where it stays in its dtype.
    """

    def __init__(self, width: int, feed_forward: nn.Module, *, last: bool = False) -> None:
        super().__init__()
        self.norm_mix = ResidualNorm(width, widens=False)
        self.feed_forward = feed_forward
        self.norm_ffn = ResidualNorm(width, widens=last)

    def forward(self, x_BMD: Tensor, step: int, global_size: int) -> tuple[Tensor, Tensor | None]:
        """[B, M, D] -> [B, M, D], and the sparse network's auxiliary loss."""
        norm = self.norm_mix
        s_BMD = mixed_norm(x_BMD, norm.weight, norm.bias, norm.eps, widens=norm.widens)
        if isinstance(self.feed_forward, SparseFeedForward):
            v_BMD, auxiliary_loss = self.feed_forward(s_BMD, step, global_size)
        else:
            v_BMD, auxiliary_loss = self.feed_forward(s_BMD), None
        return self.norm_ffn(v_BMD, s_BMD), auxiliary_loss


class RankMixer(nn.Module):
    """L blocks and the mean over tokens.

    Args:
        tokens: M; divides ``width``.
        width: D.
        num_layers: L.
        multiple: hidden width in units of D.
        experts: per token; 0 for the dense network.
        budget: share of active experts.
        seed: of the choice of router.

    Raises:
        ValueError: when ``tokens`` does not divide ``width``.
    """

    def __init__(
        self,
        tokens: int = 16,
        width: int = 256,
        *,
        num_layers: int = 2,
        multiple: int = 4,
        experts: int = 0,
        budget: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_mixing(tokens, width)
        self.width = width
        self.blocks = nn.ModuleList()
        for layer in range(num_layers):
            feed_forward = (
                SparseFeedForward(
                    tokens, width, multiple * width, experts=experts, budget=budget, seed=seed, layer=layer
                )
                if experts
                else PerTokenFeedForward(tokens, width, multiple * width)
            )
            self.blocks.append(MixerBlock(width, feed_forward, last=layer == num_layers - 1))

    def forward(self, tokens_BMD: Tensor, step: int, global_size: int) -> tuple[Tensor, Tensor | None]:
        """Pooled tokens [B, D], at least float32, and the sum of the blocks' auxiliary losses or ``None``."""
        losses = []
        for block in self.blocks:
            tokens_BMD, auxiliary_loss = block(tokens_BMD, step, global_size)
            losses += [auxiliary_loss] if auxiliary_loss is not None else []
        # Divided last: PyTorch writes a mean's gradient for every token, a sum's once.
        sum_BD = tokens_BMD.sum(1, dtype=torch.promote_types(tokens_BMD.dtype, torch.float32))
        return sum_BD / tokens_BMD.shape[1], torch.stack(losses).sum() if losses else None
