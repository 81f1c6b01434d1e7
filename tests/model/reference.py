"""The whole of LASER a second time: padded, keys and values projected as the paper writes them, in float64.

Shares nothing with the model but its parameters. Covers dense networks, sigmoid gates, sum pooling, recency "both".

Legend of shape suffixes: B samples; L padded history; N segments; W events per segment; H heads; D width; M tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from laser.batch import Batch
from laser.model.laser import Laser


def reference(model: Laser, batch: Batch) -> Tensor:
    """Float64 logits of a model in evaluation mode."""
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    rows = [_logit(model, weights, batch, b) for b in range(len(batch))]
    return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.float64)


def _vector(model: Laser, w: dict[str, Tensor], features, values: dict[str, Tensor], row: int) -> Tensor:
    parts = []
    for f in features:
        table = w[f"embeddings.collections.width_{f.width}.embeddings.{f.table}.weight"]
        ids = [int(i) for i in values[f.name][row].reshape(-1)]
        if f.length > 1:
            ids = [i for i in ids if i]
        parts.append(sum(table[i] for i in ids) / len(ids) if ids else torch.zeros(f.width, dtype=torch.float64))
    return torch.cat(parts)


def _dense(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def _ffn(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return _dense(w, f"{name}.2", gelu(_dense(w, f"{name}.0", x)))


def _logit(model: Laser, w: dict[str, Tensor], batch: Batch, b: int) -> Tensor:
    u = int(batch.history_of_B[b])
    start, stop = int(batch.off_U1[u]), int(batch.off_U1[u + 1])
    length, W = stop - start, model.sta.segment_width
    N = max(math.ceil(length / W), 1) + 1  # one segment of pure padding at the old end
    D = model.event.out_features

    x_LD, live_L = torch.zeros(N * W, D, dtype=torch.float64), torch.zeros(N * W, dtype=torch.float64)
    for event in range(start, stop):
        rank = stop - 1 - event
        x = _dense(w, "event", _vector(model, w, model.embeddings.history, batch.history, event))
        bucket = min(int(math.log2(1 + float(batch.age_T[event]) / 60)), 31)
        last = len(w["event_recency.rank.weight"]) - 1
        x_LD[N * W - 1 - rank] = (
            x + w["event_recency.age.weight"][bucket] + w["event_recency.rank.weight"][min(rank, last)]
        )
        live_L[N * W - 1 - rank] = 1
    t_D = _dense(w, "target", _vector(model, w, model.embeddings.target, batch.target, b))

    s_ND, live_N = _segments(model, w, x_LD, live_L, t_D, N)
    last = len(w["segment_recency.rank.weight"]) - 1
    for n in range(N):
        s_ND[n] = (s_ND[n] + w["segment_recency.rank.weight"][min(N - 1 - n, last)]) * live_N[n]
    u_D = t_D
    for layer in range(len(model.gsta.layers)):
        u_D = _global_layer(w, f"gsta.layers.{layer}", u_D, s_ND, live_N)

    groups = [
        u_D,
        s_ND.masked_fill(~live_N.bool()[:, None], -math.inf).max(0).values if length else torch.zeros(D).double(),
    ]
    for r in range(model.fusion.newest_segments):
        groups.append(s_ND[N - 1 - r] if r < N else torch.zeros(D).double())
    groups.append(t_D)
    groups += [_vector(model, w, [f], batch.context, b) for f in model.embeddings.context]
    recent = x_LD[-min(length, model.fusion.newest_events) :] if length else torch.zeros(1, D).double()
    groups.append(recent.mean(0))
    return _mixer(model, w, _tokens(model, w, groups))


def _segments(model: Laser, w, x_LD: Tensor, live_L: Tensor, t_D: Tensor, N: int) -> tuple[Tensor, Tensor]:
    query, key, value = (w[f"sta.heads.{name}"] for name in ("query_HDQ", "key_HDQ", "value_HDV"))
    z = []
    for h in range(len(query)):
        k_NWQ = (x_LD @ key[h]).view(N, -1, key.shape[-1])
        v_NWV = (x_LD @ value[h]).view(N, -1, value.shape[-1])
        score_NW = k_NWQ @ (t_D @ query[h]) / math.sqrt(key.shape[-1])
        gate_NW = torch.sigmoid(score_NW + w["sta.bias_H"][h]) * live_L.view(N, -1)
        z.append((gate_NW[..., None] * v_NWV).sum(1))
    z_ND, live_N = torch.cat(z, -1), live_L.view(N, -1).amax(1)
    return _norm(w, "sta.norm", z_ND + _ffn(w, "sta.ffn", z_ND)) * live_N[:, None], live_N


def _global_layer(w, name: str, u_D: Tensor, s_ND: Tensor, live_N: Tensor) -> Tensor:
    query, key, value = (w[f"{name}.heads.{part}"] for part in ("query_HDQ", "key_HDQ", "value_HDV"))
    out = []
    for h in range(len(query)):
        score_N = (s_ND @ key[h]) @ (u_D @ query[h]) / math.sqrt(query.shape[-1])
        weight_N = torch.softmax(score_N.masked_fill(live_N == 0, -math.inf), 0).nan_to_num() * live_N
        out.append(weight_N @ (s_ND @ value[h]))
    u_D = _norm(w, f"{name}.norm_attention", u_D + _dense(w, f"{name}.out", torch.cat(out)))
    return _norm(w, f"{name}.norm_ffn", u_D + _ffn(w, f"{name}.ffn", u_D))


def _tokens(model: Laser, w, groups: list[Tensor]) -> Tensor:
    """M tokens from any number of groups: own Linear per group, or per run of neighbours when there are too many."""
    M, D = model.fusion.tokens.tokens, model.fusion.tokens.width
    if len(groups) > M:
        small, extra = divmod(len(groups), M)
        merged, rest = [], list(groups)
        for token in range(M):
            size = small + (token < extra)
            merged.append(torch.cat(rest[:size]))
            rest = rest[size:]
        groups = merged
    return torch.cat([_dense(w, f"fusion.tokens.projections.{i}", g) for i, g in enumerate(groups)]).view(M, D)


def _mixer(model: Laser, w, x_MD: Tensor) -> Tensor:
    M, D = x_MD.shape
    for layer in range(len(model.mixer.blocks)):
        name = f"mixer.blocks.{layer}"
        mixed_MD = torch.stack(
            [torch.cat([x_MD[t, h * D // M : (h + 1) * D // M] for t in range(M)]) for h in range(M)]
        )
        s_MD = _norm(w, f"{name}.norm_mix", mixed_MD + x_MD)
        ffn = f"{name}.feed_forward"
        v = []
        for t in range(M):
            hidden = gelu(s_MD[t] @ w[f"{ffn}.weight1_MDF"][t] + w[f"{ffn}.bias1_MF"][t])
            v.append(hidden @ w[f"{ffn}.weight2_MFD"][t] + w[f"{ffn}.bias2_MD"][t])
        x_MD = _norm(w, f"{name}.norm_ffn", torch.stack(v) + s_MD)
    return _dense(w, "logit", x_MD.mean(0)).squeeze(-1)
