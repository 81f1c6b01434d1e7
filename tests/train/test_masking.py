"""Masking of events against networks that are given the masked history, and loading a network from its run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from laser.batch import Batch
from laser.data.collate import Collator
from laser.data.prepared import PreparedData
from laser.model.laser import Laser
from laser.train.checkpoint import save
from laser.train.masking import CHOICES, lowest, masked_predictions, only_events, separate_histories, without

SIZES = {"width": 16, "segment_width": 3, "mixer_tokens": 4, "mixer_width": 16, "embedding_std": 0.5, "seed": 3}


@pytest.fixture(scope="module")
def run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the recipe and the checkpoint of a network that was not trained."""
    folder = tmp_path_factory.mktemp("run")
    with PreparedData(prepared) as data:
        torch.manual_seed(0)
        network = Laser(data.schema, **SIZES)
        facts = {"schema": data.schema.fingerprint(), "data_set": data.schema.name}
    with torch.no_grad():
        network.sta.heads.query_HDQ.mul_(5)  # gates that differ
    network_options = {"class_path": "laser.model.laser.Laser", "init_args": SIZES}
    recipe = {"model": {"network": network_options}, "data": {"max_history": 12}}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    tensors = {f"model.network.{name}": tensor for name, tensor in network.state_dict().items()}
    save(folder / "checkpoints" / "best.ckpt", tensors, {}, facts)
    return folder


def batch_of(data: PreparedData, rows: np.ndarray) -> Batch:
    return Collator(data, 12)(data.split("test").take(rows), rows, step=0, global_size=len(rows))


def test_lowest_are_chosen_in_each_sample() -> None:
    key = np.array([0.3, 0.1, 0.2, 0.5, 0.5, 0.4])
    off, count = np.array([0, 3, 3, 6]), np.array([2, 0, 2])
    assert lowest(key, off, count).tolist() == [False, True, True, True, False, True]


def test_samples_get_histories_of_their_own(prepared: Path) -> None:
    with PreparedData(prepared) as data:
        # Rows of one user and time share a history.
        test = data.split("test")
        order = np.lexsort((test.timestamp_N, test.user_N))
        batch = batch_of(data, order)
        network = Laser(data.schema, **SIZES).eval()
    assert batch.num_histories < len(batch)
    alone = separate_histories(batch)
    assert alone.num_histories == len(batch)
    torch.testing.assert_close(network(alone).logit_B, network(batch).logit_B)


@pytest.mark.parametrize("where", ["attention", "everywhere", "removed"])
def test_masked_events_have_no_influence(prepared: Path, where: str) -> None:
    """Whatever stands in their place; and the events that are kept do have influence."""
    with PreparedData(prepared) as data:
        batch = separate_histories(batch_of(data, np.arange(40)))
        # Without the newest events and the recency of ranks, attention is the only way from an event to the logit.
        network = Laser(data.schema, **SIZES, newest_events=0 if where == "attention" else 5).eval()
        keep_T = torch.from_numpy(np.random.default_rng(0).random(len(batch.age_T)) < 0.6)
        changed = {}
        for name, mask_T in (("masked", ~keep_T), ("kept", keep_T)):
            item_T = batch.history["item"]
            other_T = torch.where(mask_T, item_T % 80 + 1, item_T)
            changed[name] = replace(batch, history=batch.history | {"item": other_T})
    logit_B = without(network, batch, keep_T, where).logit_B
    torch.testing.assert_close(without(network, changed["masked"], keep_T, where).logit_B, logit_B)
    assert (without(network, changed["kept"], keep_T, where).logit_B - logit_B).abs().max() > 1e-3
    torch.testing.assert_close(without(network, batch, torch.ones_like(keep_T), where).logit_B, network(batch).logit_B)


def test_removed_events_are_gone_from_the_batch(prepared: Path) -> None:
    with PreparedData(prepared) as data:
        batch = batch_of(data, np.arange(20))
    keep_T = batch.age_T < batch.age_T.median()
    shorter = only_events(batch, keep_T)
    assert len(shorter.age_T) == int(keep_T.sum()) == int(shorter.off_U1[-1])
    for history in range(batch.num_histories):
        start, stop = batch.off_U1[history : history + 2].tolist()
        first, last = shorter.off_U1[history : history + 2].tolist()
        for values, kept in (
            (batch.age_T, shorter.age_T),
            *((batch.event_ids(name), shorter.event_ids(name)) for name in (*batch.items, *batch.history)),
        ):
            assert torch.equal(kept[first:last], values[start:stop][keep_T[start:stop]])


def test_a_run_is_loaded_and_masked(run: Path, prepared: Path) -> None:
    with PreparedData(prepared) as data:
        found = masked_predictions(run, data, samples=60, batch_size=25, share=0.4)
        again = masked_predictions(run, data, samples=60, batch_size=25, share=0.4)
        batch = batch_of(data, found["row"])
        network = Laser(data.schema, **SIZES).eval()
        stored = masked_predictions(run, data, samples=60, threshold=1.0, where="removed")
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert len(found["row"]) == len(set(found["row"].tolist())) == 60
    assert np.array_equal(found["masked"], np.floor(0.4 * found["history_length"]))
    # The network in the run is not the one that the seed makes: its queries were changed before it was saved.
    assert np.abs(found["logit"] - network(batch).logit_B.detach().numpy()).max() > 1e-4
    assert all(np.abs(found[f"logit_{choice}"] - found["logit"]).max() > 1e-4 for choice in CHOICES)
    # Below a threshold of 1 all events are silenced: what is left is the prediction without any history.
    assert np.array_equal(stored["masked"], stored["history_length"])
    for choice in CHOICES:
        np.testing.assert_allclose(stored[f"logit_{choice}"], stored["logit_silenced"], atol=1e-6)


def test_mistakes_are_said(run: Path, prepared: Path, tmp_path: Path) -> None:
    with PreparedData(prepared) as data:
        with pytest.raises(ValueError, match=r"no recipe config.yaml"):
            masked_predictions(tmp_path, data)
        with pytest.raises(ValueError, match="share 2"):
            masked_predictions(run, data, share=2)
        with pytest.raises(ValueError, match="no checkpoint"):
            masked_predictions(run, data, checkpoint="none")
