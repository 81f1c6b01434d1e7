import pytest
import torch

from laser.model.laser import Laser
from laser.model.padding import pad_to

OPTIONS = {"width": 8, "segment_width": 2, "mixer_tokens": 8, "mixer_width": 16, "newest_evolved": 3}


@pytest.fixture
def model(schema):
    torch.manual_seed(0)
    return Laser(schema, **OPTIONS).eval()


def test_it_is_the_last_group_of_the_mixer(schema, make_batch, model, monkeypatch):
    assert sum(model.fusion.tokens.runs) == sum(Laser(schema, **OPTIONS | {"newest_evolved": 0}).fusion.tokens.runs) + 1
    batch = make_batch(schema, [12, 0, 1], [0, 1, 2, 0])
    given = []
    monkeypatch.setattr(model.fusion.tokens, "forward", lambda groups: given.append(groups) or torch.zeros(4, 8, 16))
    with torch.no_grad():
        model(batch)
        embedded = model.embeddings(batch)
        padded = pad_to(batch, 3)
        rows_BLD = padded.rows(model._events(embedded, batch))
        expected_BD = model.interest(rows_BLD, padded.live_BL, model.target(embedded.target_BE))
    torch.testing.assert_close(given[0][-1], expected_BD)
    assert not expected_BD[1].any()
    assert expected_BD[0].any()


def test_order_of_the_newest_events_matters_and_no_other(model):
    x_BLD, live_BL = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    target_BD = torch.randn(1, 8)
    forwards, backwards = model.interest(x_BLD, live_BL, target_BD), model.interest(x_BLD.flip(1), live_BL, target_BD)
    assert (forwards - backwards).abs().max() > 1e-4
    padded = model.interest(
        torch.cat([torch.zeros(1, 2, 8), x_BLD], 1), torch.tensor([[False] * 2 + [True] * 3]), target_BD
    )
    torch.testing.assert_close(padded, forwards)


def test_costs_count_it(schema, model):
    plain = Laser(schema, **OPTIONS | {"newest_evolved": 0})
    difference = model.costs(100).sequence_macs - plain.costs(100).sequence_macs
    assert difference == 3 * (12 * 8 * 8 + 8) + 8 * 8
    assert model.costs(2).parts["evolution"] == 2 * (12 * 8 * 8 + 8) + 8 * 8


def test_a_negative_number_of_events_is_a_mistake(schema):
    with pytest.raises(ValueError, match="newest_evolved is -1; give a number of events"):
        Laser(schema, **OPTIONS | {"newest_evolved": -1})
