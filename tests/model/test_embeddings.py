import itertools
from dataclasses import replace

import pytest
import torch

from laser.data.distinct import distinct_ids
from laser.model.embeddings import BLOCK_ROWS, TableEmbeddings, initial_rows


def test_initial_rows_do_not_depend_on_the_cut():
    whole = initial_rows("item", 0, 3 * BLOCK_ROWS + 5, 4, seed=1, std=0.02)
    cuts = [0, 1, 700, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS, 3 * BLOCK_ROWS + 5]
    parts = [initial_rows("item", a, b, 4, seed=1, std=0.02) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat(parts), whole)
    assert initial_rows("item", 7, 7, 4, seed=1, std=0.02).shape == (0, 4)
    assert abs(whole.std() / 0.02 - 1) < 0.02
    assert abs(whole.mean()) < 1e-3
    for other in (initial_rows("user", 0, 5, 4, 1, 0.02), initial_rows("item", 0, 5, 4, 2, 0.02)):
        assert not torch.equal(other, whole[:5])
    assert whole.unique(dim=0).shape == whole.shape


def naive(embeddings, feature, ids):
    weight = embeddings.collections[f"width_{feature.width}"].embeddings[feature.table].weight
    if feature.length == 1:
        return weight[ids]
    rows = []
    for values in ids.tolist():
        known = [weight[value] for value in values if value]
        rows.append(torch.stack(known).mean(0) if known else torch.zeros(feature.width))
    return torch.stack(rows) if rows else torch.zeros(0, feature.width)


def vectors(out) -> torch.Tensor:
    return torch.cat([found.vectors() for found in out.items + out.history], -1)


def with_distinct(schema, batch):
    """The batch as the loader gives it: with the distinct ids of each table."""
    parts = [{name: ids.numpy() for name, ids in ids.items()} for ids in (batch.history, batch.target, batch.context)]
    found = [
        {name: torch.from_numpy(ids) for name, ids in by_table.items()} for by_table in distinct_ids(schema, *parts)
    ]
    return replace(batch, distinct=found[0], place=found[1])


@pytest.mark.parametrize("from_loader", [False, True])
@pytest.mark.parametrize("stride", [1, 7, 1024])
def test_every_feature_gets_its_own_rows(schema, batch, from_loader, stride):
    batch.target["genre"][0] = 0
    embeddings = TableEmbeddings(schema, stride=stride)
    out = embeddings(with_distinct(schema, batch) if from_loader else batch)
    for got, features, ids in (
        (vectors(out), embeddings.history, batch.history),
        (out.target_BE, embeddings.target, batch.target),
    ):
        torch.testing.assert_close(got, torch.cat([naive(embeddings, f, ids[f.name]) for f in features], -1))
    for got, feature in zip(out.context, embeddings.context, strict=True):
        torch.testing.assert_close(got, naive(embeddings, feature, batch.context[feature.name]))
    assert out.target_BE[0, 16:].abs().max() == 0


def test_gradients_are_those_of_plain_look_ups(schema, batch):
    embeddings = TableEmbeddings(schema)
    out = embeddings(batch)
    (vectors(out).sin().sum() + out.target_BE.sin().sum() + sum(c.sin().sum() for c in out.context)).backward()
    got = {name: p.grad.clone() for name, p in embeddings.named_parameters()}
    embeddings.zero_grad()
    places = (
        (embeddings.history, batch.history),
        (embeddings.target, batch.target),
        (embeddings.context, batch.context),
    )
    sum(naive(embeddings, f, ids[f.name]).sin().sum() for features, ids in places for f in features).backward()
    for name, p in embeddings.named_parameters():
        torch.testing.assert_close(got[name], p.grad, msg=name)


def test_one_key_per_table_and_a_fixed_number_of_bags(schema, batch):
    embeddings = TableEmbeddings(schema, stride=16)
    seen = []
    for collection in embeddings.collections.values():
        collection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embeddings(batch)
    assert sorted(key for kjt in seen for key in kjt.keys())  # noqa: SIM118 == ["action", "genre", "item", "user"]
    assert len(seen) == 2  # widths 8 and 16
    for kjt in seen:
        lengths = kjt.lengths().view(len(kjt.keys()), 16)
        assert (lengths.max(1).values - lengths.min(1).values).max() <= 1
        assert lengths.sum(1).tolist() == kjt.length_per_key()


def test_ids_are_int64_whatever_names_them(schema, batch):
    """Also those of a table that only a field in int32 names, and that is alone in its width."""
    apart = tuple(replace(feature, width=24) if feature.name == "action" else feature for feature in schema.features)
    embeddings = TableEmbeddings(replace(schema, features=apart))
    seen = []
    for collection in embeddings.collections.values():
        collection.register_forward_pre_hook(lambda _, args: seen.append(args[0].values().dtype))
    batch.history["action"] = batch.history["action"].int()
    embeddings(batch)
    assert seen == [torch.int64] * 3


def test_empty_batch_keeps_its_shapes(schema, make_batch):
    out = TableEmbeddings(schema)(make_batch(schema, [], []))
    assert vectors(out).shape == (0, 32)
    assert out.target_BE.shape == (0, 24)
    assert [c.shape for c in out.context] == [(0, 8), (0, 8)]


def test_tables_on_meta_are_left_alone(schema):
    embeddings = TableEmbeddings(schema, table_device="meta")
    assert all(p.device.type == "meta" for p in embeddings.parameters())


def test_no_bags_are_refused(schema):
    with pytest.raises(ValueError, match="lookup_stride is 0; expected a number of bags of at least 1"):
        TableEmbeddings(schema, stride=0)


def test_a_schema_that_embeds_no_item_is_refused(make_schema):
    with pytest.raises(ValueError, match="embeds no feature of the item"):
        TableEmbeddings(make_schema(side=False, embedded_item=False))
