import math

import pytest
import torch

from laser.model.sta import SegmentedTargetAttention

LENGTHS = [0, 1, 9, 10, 11, 63, 500]


def inputs(lengths, width=16, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    off_U1 = torch.tensor([0, *lengths]).cumsum(0)
    x_TD = torch.randn(int(off_U1[-1]), width, dtype=dtype, requires_grad=True)
    target_BD = torch.randn(len(lengths), width, dtype=dtype, requires_grad=True)
    return x_TD, off_U1, target_BD, torch.arange(len(lengths))


def projected(sta, x_TD, off_U1, target_BD, history_of_B):
    """The paper's form: keys and values of every event, gates, sums over segments cut from the newest end."""
    heads, segments, seg_off = sta.heads, [], [0]
    for b, u in enumerate(history_of_B.tolist()):
        x_LD = x_TD[off_U1[u] : off_U1[u + 1]]
        query_HQ = torch.einsum("d,hdq->hq", target_BD[b], heads.query_HDQ)
        key_LHQ = torch.einsum("ld,hdq->lhq", x_LD, heads.key_HDQ)
        value_LHV = torch.einsum("ld,hdv->lhv", x_LD, heads.value_HDV)
        score_LH = (key_LHQ * query_HQ).sum(-1) / math.sqrt(query_HQ.shape[1])
        stops = list(range(len(x_LD), 0, -sta.segment_width))[::-1]
        for stop in stops:
            part = slice(max(stop - sta.segment_width, 0), stop)
            if sta.gate == "softmax":
                gate_LH = torch.softmax(score_LH[part], 0)
            else:
                gate_LH = torch.sigmoid(score_LH[part] + sta.bias_H)
            pooled_HV = (gate_LH[..., None] * value_LHV[part]).sum(0)
            z_D = (pooled_HV / (part.stop - part.start) if sta.pooling == "mean" else pooled_HV).flatten()
            segments.append(sta.norm(z_D + sta.ffn(z_D) if sta.ffn else z_D))
        seg_off.append(seg_off[-1] + len(stops))
    return torch.stack(segments), torch.tensor(seg_off)


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
@pytest.mark.parametrize(
    "options",
    [{}, {"pooling": "mean"}, {"ffn_multiple": 0}, {"layer_norm": False}, {"ffn_multiple": 0, "layer_norm": False}],
    ids=str,
)
def test_folded_equals_projected_with_gradients(gate, options):
    if gate == "softmax":
        x_TD, off_U1, target_BD, history_of_B = inputs(LENGTHS, dtype=torch.float32)
        tolerance = {"rtol": 1e-4, "atol": 1e-4}
    else:
        x_TD, off_U1, target_BD, history_of_B = inputs(LENGTHS)
        tolerance = {"rtol": 1e-9, "atol": 1e-9}
    sta = SegmentedTargetAttention(16, query_width=4, gate=gate, **options).to(x_TD.dtype)
    wanted = [x_TD, target_BD, *sta.parameters()]
    got_GD, seg_off_B1, _ = sta(x_TD, off_U1, target_BD, history_of_B)
    expected_GD, expected_off = projected(sta, x_TD, off_U1, target_BD, history_of_B)
    assert torch.equal(seg_off_B1, expected_off)
    torch.testing.assert_close(got_GD, expected_GD, **tolerance)
    weight_GD = torch.randn_like(got_GD)
    got = torch.autograd.grad((got_GD * weight_GD).sum(), wanted)
    expected = torch.autograd.grad((expected_GD * weight_GD).sum(), wanted)
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_older_segments_do_not_move_newer_ones(gate):
    x_TD, _, target_BD, _ = inputs([37], dtype=torch.float32)
    sta = SegmentedTargetAttention(16, gate=gate)
    one = torch.tensor([0])
    long_GD, _, _ = sta(x_TD, torch.tensor([0, 37]), target_BD, one)
    for length in (10, 20, 23, 30):
        short_GD, _, _ = sta(x_TD[37 - length :], torch.tensor([0, length]), target_BD, one)
        full = length // 10
        torch.testing.assert_close(short_GD[-full:], long_GD[-full:])


def test_initial_bias_and_softmax_weights():
    assert SegmentedTargetAttention(16, segment_width=20).bias_H.tolist() == pytest.approx([-math.log(20)] * 2)
    assert SegmentedTargetAttention(16, gate_bias=0.5).bias_H.tolist() == [0.5, 0.5]
    x_TD, off_U1, target_BD, history_of_B = inputs([0, 7], dtype=torch.float32)
    sta = SegmentedTargetAttention(16, segment_width=5, gate="softmax")
    _, _, gates = sta(1e3 * x_TD, off_U1, target_BD, history_of_B, return_gates=True)
    assert gates.event_off_B1.tolist() == [0, 0, 7]
    for part in (gates.gate_EH[:2], gates.gate_EH[2:]):
        torch.testing.assert_close(part.sum(0), torch.ones(2))


def test_gates_do_not_notice_autocast():
    x_TD, off_U1, target_BD, history_of_B = inputs(LENGTHS, dtype=torch.float32)
    sta = SegmentedTargetAttention(16)
    exact = sta(x_TD, off_U1, target_BD, history_of_B, return_gates=True)[2]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sta(x_TD, off_U1, target_BD, history_of_B, return_gates=True)[2]
    assert torch.equal(mixed.gate_EH, exact.gate_EH)


def test_initial_projections_have_the_fans_of_the_whole_matrix():
    heads = SegmentedTargetAttention(128).heads
    for weight, fans in ((heads.query_HDQ, 128 + 32), (heads.key_HDQ, 128 + 32), (heads.value_HDV, 128 + 128)):
        assert weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.03)
