"""What holds for every encoder: costs, empty histories, gradients, independence of the batch, precision, recipes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from jsonargparse import ActionConfigFile, ArgumentParser
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from laser.model.baselines.dien import DIEN
from laser.model.baselines.din import DIN
from laser.model.baselines.encoder_model import EncoderModel
from laser.model.baselines.eta import ETA
from laser.model.baselines.hstu import HSTU
from laser.model.baselines.longer import LONGER
from laser.model.baselines.multi_window_din import MultiWindowDIN
from laser.model.baselines.newest_mean import NewestMean
from laser.model.baselines.sdim import SDIM
from laser.model.baselines.sim import SIM
from laser.model.baselines.stca import STCA
from laser.model.baselines.transact import TransAct
from laser.model.baselines.transformer import Transformer
from laser.model.baselines.twin import TWIN
from laser.train.module import CTRModule

ENCODERS = [
    (NewestMean, {}),
    (DIN, {}),
    (DIN, {"softmax": True, "newest": 8}),
    (Transformer, {}),
    (Transformer, {"num_layers": 2, "ffn_multiple": 4}),
    (SDIM, {}),
    (ETA, {"top": 6}),
    (TWIN, {"top": 6}),
    (SIM, {"top": 6}),
    (MultiWindowDIN, {"windows": [3, 6]}),
    (DIEN, {}),
    (DIEN, {"newest": 4}),
    (STCA, {}),
    (HSTU, {}),
    (HSTU, {"num_layers": 2}),
    (TransAct, {}),
    (TransAct, {"newest": 7, "newest_outputs": 3}),
    (LONGER, {"newest": 5}),
    (LONGER, {"merge": 1, "self_layers": 2}),
]
SMALL = {
    "width": 16,
    "recency_ranks": 50,
    "newest_events": 20,
    "mixer_tokens": 4,
    "mixer_width": 16,
    "mixer_multiple": 2,
}
every_encoder = pytest.mark.parametrize(
    ("kind", "options"), ENCODERS, ids=lambda value: getattr(value, "__name__", str(value))
)


def build(schema, kind, options, **model_options):
    torch.manual_seed(0)
    return EncoderModel(schema, lambda width, item: kind(width, item, **options), **{**SMALL, **model_options})


@every_encoder
def test_costs_are_what_pytorch_counts(make_inputs, kind, options):
    if options.get("num_layers", 1) > 1 and kind is Transformer:
        pytest.skip("full rows use a fused attention, which the counter does not know on every device")
    encoder = kind(16, 12, **options).eval()
    with FlopCounterMode(display=False) as counter:
        encoder(make_inputs([60], [0]))
    assert counter.get_total_flops() == 2 * encoder.macs(60)


@every_encoder
@pytest.mark.parametrize(("lengths", "samples"), [([], []), ([0], []), ([0, 0], [1, 0]), ([5], []), ([0, 3], [0])])
def test_empty_batches_and_histories_have_all_gradients(schema, make_batch, kind, options, lengths, samples):
    batch = make_batch(schema, lengths, samples)
    model = build(schema, kind, options, event_dropout=0.5, token_dropout=0.5).train()
    output = model(batch, return_gates=True)
    assert output.logit_B.shape == (len(samples),)
    (output.logit_B.sum() + (output.auxiliary_loss if output.auxiliary_loss is not None else 0.0)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_encoder
def test_gradient_reaches_every_parameter(schema, batch, kind, options):
    model = build(schema, kind, options).train()
    output = model(batch)
    loss = binary_cross_entropy_with_logits(output.logit_B, batch.label_B)
    (loss + (output.auxiliary_loss if output.auxiliary_loss is not None else 0.0)).backward()
    # A softmax does not change when all scores do: the gradient of their bias is zero but for rounding.
    same_for_all = {"encoder.unit.rest.3.bias"} if options.get("softmax") else set()
    parameters = {name: p for name, p in model.named_parameters() if name not in same_for_all}
    assert [name for name, p in parameters.items() if p.grad.abs().max() == 0] == []


def results(model, batches):
    model, logits = copy.deepcopy(model), {}
    for batch in batches:
        output = model(batch)
        loss = binary_cross_entropy_with_logits(output.logit_B, batch.label_B, reduction="sum") / batch.global_size
        (loss + (output.auxiliary_loss if output.auxiliary_loss is not None else 0.0)).backward()
        logits.update(zip(batch.row_B.tolist(), output.logit_B.tolist()))
    return logits, {name: p.grad for name, p in model.named_parameters()}


@every_encoder
@pytest.mark.parametrize(
    "slices", [[[9, 3, 7, 1, 5, 0, 2, 8, 6, 4]], [range(4), [], range(4, 10)]], ids=["permuted", "split"]
)
def test_same_whatever_way_samples_are_spread(schema, batch, take, kind, options, slices):
    """So nothing depends on padding, on other samples, or on the number of processes."""
    model = build(schema, kind, options, event_dropout=0.2, token_dropout=0.2).train()
    logits, grads = results(model, [batch])
    other_logits, other_grads = results(model, [take(batch, list(rows)) for rows in slices])
    assert other_logits == pytest.approx(logits, rel=1e-4, abs=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(other_grads[name], grad, rtol=1e-3, atol=3e-5, msg=name)


@every_encoder
def test_mixed_precision_is_close(schema, batch, kind, options):
    model = build(schema, kind, options).eval()
    exact = model(batch).logit_B
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(batch).logit_B
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1)


def test_whole_costs(schema):
    model = build(schema, DIN, {})
    costs = model.costs(60)
    assert costs.sequence_macs == model.encoder.macs(60) == costs.parts["encoder"]
    assert costs.parts["event_projection"] == 60 * model.event.weight.numel()


@pytest.mark.parametrize(
    ("kind", "options", "published"),
    [
        (DIN, {}, 4.43e7),
        (DIN, {"newest": 100}, 4.43e6),
        (Transformer, {}, 3.54e8),
        (Transformer, {"ffn_multiple": 4}, 4.53e8),
        (STCA, {}, 1.0e8),
        (STCA, {"multiple": 4}, 3.95e8),
        (HSTU, {}, 3.71e8),
        (LONGER, {}, 7.1e7),
        (LONGER, {"merge": 1}, 9.9e7),
    ],
    ids=str,
)
def test_costs_in_the_paper_form(kind, options, published):
    assert kind(128, 64, **options).macs(1000, "paper") == pytest.approx(published, rel=0.01)


def test_items_of_history_and_target_are_compared_in_one_space(schema, make_batch):
    """Hashing needs it: the same item with the same side info has the same vector, whatever was done with it."""
    batch = make_batch(schema, [4, 3], [0, 1])
    for name in ("item", "genre"):
        batch.target[name][:] = batch.history[name][[2, 5]]
    seen = []

    class Spy(NewestMean):
        reads_items = True

        def forward(self, inputs):
            seen.append(inputs)
            return super().forward(inputs)

    build(schema, Spy, {})(batch)
    assert torch.equal(seen[0].item_TE[[2, 5]], seen[0].item_BE)
    assert not torch.equal(seen[0].item_TE[[1, 4]], seen[0].item_BE)


def test_a_head_without_history_is_refused(schema):
    with pytest.raises(ValueError, match="newest_events is 0"):
        build(schema, NewestMean, {}, newest_events=0)


CONF = Path(__file__).parents[3] / "conf"
OVERLAYS = sorted((CONF / "baselines").glob("*.yaml"))


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("recipe", ["demo", "assistments"])
def test_overlays_go_over_a_recipe(schema, batch, path, recipe):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", action=ActionConfigFile)
    parser.add_class_arguments(CTRModule, "model")
    for group in ("data", "trainer"):
        parser.add_argument(f"--{group}", type=dict)
    parser.add_argument("--seed_everything", type=int)
    found = parser.parse_args(["-c", str(CONF / f"{recipe}.yaml"), "-c", str(path)])
    network = parser.instantiate_classes(found).model.build_network(schema, seed=3)
    assert type(network.encoder).__name__.lower() == path.stem.replace("_", "")
    assert network(batch).logit_B.isfinite().all()
