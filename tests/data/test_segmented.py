"""The segmented view against plain slices of single histories, and against what segmented attention sums up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from laser.data.collate import Collator
from laser.data.prepared import PreparedData
from laser.data.segmented import segment_offsets, segmented_histories
from laser.ops.segmented_attention import segmented_target_attention


@pytest.fixture(scope="module")
def data(prepared: Path):
    with PreparedData(prepared) as opened:
        yield opened


@pytest.fixture(scope="module")
def requests(data) -> tuple[np.ndarray, np.ndarray]:
    """Sixty of the test samples, a user that is unknown, and one before all time."""
    samples = data.split("test")
    rows = np.random.default_rng(3).permutation(len(samples))[:60]
    user, time = samples.user_N[rows].astype(np.int64), samples.timestamp_N[rows]
    return np.append(user, [10**9, user[0]]), np.append(time, [time.max(), 0])


@pytest.mark.parametrize("width", [1, 3, 8, 1000])
@pytest.mark.parametrize("max_history", [None, 0, 10])
def test_segments_are_slices_from_the_newest_event(data, requests, width, max_history):
    view = segmented_histories(data, *requests, width=width, max_history=max_history)
    for request, (user, time) in enumerate(zip(*requests)):
        events = data.vault.read(np.array([user]), before=int(time), last_n=max_history).of(0)
        item = events["item"].tolist()
        cuts = list(range(len(item), 0, -width))[::-1]
        wanted = [item[max(cut - width, 0) : cut] for cut in cuts]
        assert [segment["item"].tolist() for segment in view.of(request)] == wanted
    assert view.off_R1[-1] == len(view.values["item"]) == view.mask_GW.sum()
    for name, side in data.items.items():
        assert (view.values[name] == side[view.values["item"]]).all()


def test_padded_form_holds_the_packed_values_at_its_newest_end(data, requests):
    view = segmented_histories(data, *requests, width=4)
    assert not view.mask_GW.all()
    assert view.mask_GW[:, -1].all()
    for name, values in view.values.items():
        padded = view.padded(name)
        assert padded.shape == (len(view.mask_GW), 4, *values.shape[1:])
        assert (padded[view.mask_GW] == values).all()
        assert (padded[~view.mask_GW] == 0).all()
    with pytest.raises(ValueError, match="no field 'nothing' in the histories; they have timestamp, item"):
        view.padded("nothing")


def test_segments_are_those_of_segmented_attention(data):
    """With all gates open, the model's op sums up exactly the events of each segment of the view."""
    samples = data.split("test")
    rows = np.random.default_rng(4).permutation(len(samples))[:40]
    batch = Collator(data, 50)(samples.take(rows), rows, step=0, global_size=40)
    view = segmented_histories(data, samples.user_N[rows], samples.timestamp_N[rows], width=7, max_history=50)
    vector = torch.from_numpy(np.random.default_rng(5).normal(size=(data.schema.item.cardinality, 6)))
    pooled_GHD, seg_off_B1 = segmented_target_attention(
        vector[batch.event_ids("item")],
        batch.off_U1,
        torch.zeros(40, 1, 6, dtype=torch.float64),
        torch.full((1,), 100.0, dtype=torch.float64),
        batch.history_of_B,
        7,
    )
    assert seg_off_B1.tolist() == view.seg_off_R1.tolist()
    padded_GWD = vector[torch.from_numpy(view.padded("item").astype(np.int64))]
    wanted_GD = (padded_GWD * torch.from_numpy(view.mask_GW)[:, :, None]).sum(1)
    torch.testing.assert_close(pooled_GHD[:, 0], wanted_GD)


def test_offsets_of_the_drawing():
    seg_off, event_off = segment_offsets(np.array([0, 5, 5, 7]), 2)
    assert seg_off.tolist() == [0, 3, 3, 4]
    assert event_off.tolist() == [0, 1, 3, 5, 7]
    empty = segment_offsets(np.array([0]), 2)
    assert [array.tolist() for array in empty] == [[0], [0]]


def test_mistakes(data):
    with pytest.raises(ValueError, match="segment width is 0; expected at least 1"):
        segmented_histories(data, [1], [5], width=0)
    with pytest.raises(ValueError, match=r"users have shape \(2,\) and times \(1,\); expected one time per user"):
        segmented_histories(data, [1, 2], [5], width=3)
