"""Counts of arithmetic against published figures and against what PyTorch counts on the same products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from laser.model.costs import laser_costs, sequence_costs
from laser.model.laser import Laser


def test_published_total():
    assert sequence_costs(1000, form="paper").macs == pytest.approx(4.07e7, rel=1e-3)
    assert sequence_costs(1000).macs == pytest.approx(1.58e7, rel=5e-3)
    assert sequence_costs(1000).flops == 2 * sequence_costs(1000).macs


@pytest.mark.parametrize(("segment_width", "low", "high"), [(5, 1.48, 1.49), (10, 1, 1), (20, 0.755, 0.758)])
def test_published_costs_by_segment_width(segment_width, low, high):
    ratio = (
        sequence_costs(1000, segment_width=segment_width, form="paper").macs / sequence_costs(1000, form="paper").macs
    )
    assert low <= ratio <= high


def test_costs_are_linear_in_depth_and_length():
    by_layers = [sequence_costs(1000, num_layers=m, form="paper").macs for m in (1, 2, 3, 4)]
    assert [macs / 1e7 for macs in by_layers] == pytest.approx([3.72, 4.07, 4.41, 4.76], abs=0.006)
    by_length = [sequence_costs(length, form="paper").macs for length in (500, 1000, 2000, 4000)]
    assert [macs / 1e7 for macs in by_length] == pytest.approx([2.05, 4.07, 8.10, 16.2], rel=3e-3)
    lengths = [sequence_costs(length).macs for length in (0, 1000, 2000)]
    assert lengths[2] - lengths[1] == lengths[1] - lengths[0]


def paper_form(x_LD, t_1D, model):
    """The products of the paper's form for one sample of whole segments, weights taken from the model."""
    heads, W = model.sta.heads, model.sta.segment_width
    H, D, Q = heads.query_HDQ.shape
    join = lambda weight: weight.permute(1, 0, 2).reshape(D, -1)  # noqa: E731
    q_H1Q = (t_1D @ join(heads.query_HDQ)).view(1, H, Q).transpose(0, 1)
    k_HLQ = (x_LD @ join(heads.key_HDQ)).view(-1, H, Q).transpose(0, 1)
    v_HLV = (x_LD @ join(heads.value_HDV)).view(len(x_LD), H, -1).transpose(0, 1)
    gate_HL = torch.bmm(k_HLQ, q_H1Q.transpose(1, 2)).squeeze(-1).sigmoid()
    pooled = torch.bmm(gate_HL.reshape(-1, 1, W), v_HLV.reshape(-1, W, v_HLV.shape[-1]))
    s_ND = pooled.view(H, -1, D // H).transpose(0, 1).reshape(-1, D)
    s_ND = s_ND + model.sta.ffn(s_ND)
    u_1D = t_1D
    for layer in model.gsta.layers:
        q_H1Q, k_HNQ, v_HNV = (
            (source @ join(weight)).view(len(source), H, -1).transpose(0, 1)
            for source, weight in (
                (u_1D, layer.heads.query_HDQ),
                (s_ND, layer.heads.key_HDQ),
                (s_ND, layer.heads.value_HDV),
            )
        )
        weight_H1N = torch.bmm(q_H1Q, k_HNQ.transpose(1, 2)).softmax(-1)
        u_1D = u_1D + layer.out(torch.bmm(weight_H1N, v_HNV).transpose(0, 1).reshape(1, D))
        u_1D = u_1D + layer.ffn(u_1D)


def folded_form(x_LD, t_1D, model):
    """The products of the folded form for one sample of whole segments."""
    W, D = model.sta.segment_width, x_LD.shape[1]
    query_HD = model.sta.heads.query(t_1D)[0]
    gate_LH = (x_LD @ query_HD.T).sigmoid()
    pooled_NHD = torch.bmm(gate_LH.view(-1, W, len(query_HD)).transpose(1, 2), x_LD.view(-1, W, D))
    s_ND = model.sta.heads.value(pooled_NHD)
    s_ND = s_ND + model.sta.ffn(s_ND)
    u_1D = t_1D
    for layer in model.gsta.layers:
        weight_HN = (layer.heads.query(u_1D)[0] @ s_ND.T).softmax(-1)
        u_1D = u_1D + layer.out(layer.heads.value((weight_HN @ s_ND)[None]))
        u_1D = u_1D + layer.ffn(u_1D)


@pytest.mark.parametrize(("length", "segment_width"), [(1000, 10), (60, 20)])
@pytest.mark.parametrize(("form", "products"), [("paper", paper_form), ("folded", folded_form)])
def test_sequence_costs_are_what_pytorch_counts(schema, form, products, length, segment_width):
    model = Laser(schema, segment_width=segment_width, num_layers=3)
    with FlopCounterMode(display=False) as counter:
        products(torch.randn(length, 128), torch.randn(1, 128), model)
    costs = sequence_costs(length, segment_width=segment_width, num_layers=3, form=form)
    assert counter.get_total_flops() == costs.flops
    assert laser_costs(model, length, form).sequence_macs == costs.macs


@pytest.mark.parametrize("options", [{}, {"mixer_tokens": 4}, {"experts": 4}], ids=str)
def test_other_parts_are_what_pytorch_counts(schema, make_batch, options):
    model = Laser(schema, **options).eval()
    parts = model.costs(30).parts
    counted = {}
    with FlopCounterMode(display=False) as counter:
        model(make_batch(schema, [30], [0]))
    for part, module in [("target_projection", "target"), ("fusion", "fusion")]:
        counted[part] = sum(counter.get_flop_counts()[f"Laser.{module}"].values()) // 2
    counted["mixer"] = sum(sum(counter.get_flop_counts()[f"Laser.{m}"].values()) for m in ("mixer", "logit")) // 2
    assert counted == {part: parts[part] for part in counted}
    # The most it can be: the layer acts on distinct ids, and here all are told apart.
    assert parts["event_projection"] == 30 * model.event.weight.numel()
