import pytest
import torch

from laser.model.gsta import GlobalStackedTargetAttention

SEG_OFF = torch.tensor([0, 3, 3, 4, 9])


def projected(layer, user_BD, segment_GD, seg_off_B1):
    """``torch.nn.functional.multi_head_attention_forward`` on one sample at a time, keys and values projected."""
    heads, D = layer.heads, user_BD.shape[1]
    H = heads.query_HDQ.shape[0]
    joint = torch.cat([p.permute(0, 2, 1).reshape(D, D) for p in (heads.query_HDQ, heads.key_HDQ, heads.value_HDV)])
    rows = []
    for b in range(len(user_BD)):
        s_SD = segment_GD[seg_off_B1[b] : seg_off_B1[b + 1]]
        o_D = torch.zeros_like(user_BD[b])
        if len(s_SD):
            o_1D, _ = torch.nn.functional.multi_head_attention_forward(
                user_BD[b : b + 1], s_SD, s_SD, D, H, joint, None, None, None, False, 0.0, layer.out.weight, None
            )
            o_D = o_1D[0]
        u_D = layer.norm_attention(user_BD[b] + o_D)
        rows.append(layer.norm_ffn(u_D + layer.ffn(u_D)))
    return torch.stack(rows)


@pytest.mark.parametrize(("num_heads", "num_layers"), [(1, 1), (2, 2), (4, 3)])
def test_folded_equals_torch_multi_head_attention(num_heads, num_layers):
    torch.manual_seed(0)
    gsta = GlobalStackedTargetAttention(16, num_layers=num_layers, num_heads=num_heads).double()
    target_BD = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    segment_GD = torch.randn(9, 16, dtype=torch.float64, requires_grad=True)
    expected_BD = target_BD
    for layer in gsta.layers:
        expected_BD = projected(layer, expected_BD, segment_GD, SEG_OFF)
    got_BD, same_GD = gsta(target_BD, segment_GD, SEG_OFF)
    assert torch.equal(same_GD, segment_GD)
    torch.testing.assert_close(got_BD, expected_BD)
    wanted = [target_BD, segment_GD, *gsta.parameters()]
    weight = torch.randn_like(got_BD)
    for a, b in zip(
        torch.autograd.grad((got_BD * weight).sum(), wanted), torch.autograd.grad((expected_BD * weight).sum(), wanted)
    ):
        torch.testing.assert_close(a, b)


def test_without_history_the_segments_of_others_do_not_matter():
    gsta = GlobalStackedTargetAttention(16)
    target_BD, segment_GD = torch.randn(4, 16), torch.randn(9, 16)
    before, _ = gsta(target_BD, segment_GD, SEG_OFF)
    after, _ = gsta(target_BD, segment_GD + 1, SEG_OFF)
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [False, True, False, False]
    assert before.isfinite().all()
