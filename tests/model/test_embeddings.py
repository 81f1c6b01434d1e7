import itertools

import pytest
import torch

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


@pytest.mark.parametrize("deduplicate", [False, True, None])
@pytest.mark.parametrize("stride", [1, 7, 1024])
def test_every_feature_gets_its_own_rows(schema, batch, deduplicate, stride):
    batch.target["genre"][0] = 0
    embeddings = TableEmbeddings(schema, deduplicate=deduplicate, stride=stride)
    out = embeddings(batch)
    for got, features, ids in (
        (out.event_TE, embeddings.history, batch.history),
        (out.target_BE, embeddings.target, batch.target),
    ):
        torch.testing.assert_close(got, torch.cat([naive(embeddings, f, ids[f.name]) for f in features], -1))
    for got, feature in zip(out.context, embeddings.context, strict=True):
        torch.testing.assert_close(got, naive(embeddings, feature, batch.context[feature.name]))
    assert out.target_BE[0, 16:].abs().max() == 0


def test_deduplication_changes_no_gradient(schema, batch):
    grads = []
    for deduplicate in (False, True):
        embeddings = TableEmbeddings(schema, deduplicate=deduplicate)
        out = embeddings(batch)
        (out.event_TE.sin().sum() + out.target_BE.sin().sum() + sum(c.sin().sum() for c in out.context)).backward()
        grads.append({name: p.grad for name, p in embeddings.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_one_key_per_table_and_a_fixed_number_of_bags(schema, batch):
    embeddings = TableEmbeddings(schema, stride=16, deduplicate=False)
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


def test_empty_batch_keeps_its_shapes(schema, make_batch):
    out = TableEmbeddings(schema)(make_batch(schema, [], []))
    assert out.event_TE.shape == (0, 32)
    assert out.target_BE.shape == (0, 24)
    assert [c.shape for c in out.context] == [(0, 8), (0, 8)]


def test_tables_on_meta_are_left_alone(schema):
    embeddings = TableEmbeddings(schema, table_device="meta")
    assert all(p.device.type == "meta" for p in embeddings.parameters())


def test_a_schema_that_embeds_no_item_is_refused(make_schema):
    with pytest.raises(ValueError, match="embeds no feature of the item"):
        TableEmbeddings(make_schema(side=False, embedded_item=False))
