"""Rows handed out to ids as they come: admission, eviction, and rows that start again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from laser.model.embeddings import initial_rows
from laser.train.fused_state import fill_accumulators, fused_state
from laser.train.managed_ids import IdMap, ManagedIds, check_managed, manage_ids
from laser.train.optim import TableOptimizer
from laser.train.placement import Sharding
from laser.train.sharding import shard_collections
from laser.train.table_rows import fill_rows
from laser.train.table_storage import Storage, TableStorage

pytestmark = pytest.mark.usefixtures("group_of_one")
CPU = torch.device("cpu")
HUGE = 10**12


def id_map(**options) -> IdMap:
    return IdMap(ManagedIds(**({"rows": 4, "interval": 2} | options)), CPU)


def steps(known: IdMap, *batches: list[int]) -> list[int]:
    """Observe steps, and say which rows changed hands."""
    for batch in batches:
        known.observe(torch.tensor(batch))
    assert known.due
    return known.change().tolist()


def rows(known: IdMap, *ids: int) -> list[int]:
    return known.rows(torch.tensor(ids)).tolist()


def test_ids_without_a_row_share_the_last():
    assert rows(id_map(), 5, HUGE, 0) == [3, 3, 3]


def test_ids_get_rows_of_their_own_and_keep_them():
    known = id_map()
    assert len(steps(known, [HUGE, 7], [HUGE, HUGE + 1])) == 3
    first = rows(known, HUGE, HUGE + 1, 7)
    assert sorted(first) == [0, 1, 2]
    assert rows(known, 8) == [3]
    steps(known, [7], [HUGE])
    assert rows(known, HUGE, HUGE + 1, 7) == first


def test_rare_ids_are_not_admitted():
    known = id_map(admit_after=2)
    steps(known, [1, 1, 1, 2], [2])  # within a step an id counts once
    assert rows(known, 1) == [3]
    assert rows(known, 2) != [3]


@pytest.mark.parametrize(("evict", "gone"), [("lfu", 3), ("lru", 1)])
def test_the_policy_chooses_who_goes(evict, gone):
    known = id_map(evict=evict)
    steps(known, [1, 2], [1, 2])
    steps(known, [2, 3], [2])
    assert rows(known, 1, 2, 3).count(3) == 0
    before = rows(known, gone)
    assert steps(known, [4], [4]) == before == rows(known, 4)
    assert rows(known, gone) == [3]


def test_state_goes_on_in_the_middle_of_an_interval():
    whole, first, second = id_map(), id_map(), id_map()
    for known in (whole, first):
        known.observe(torch.tensor([HUGE, 7]))
    second.load_state_dict(first.state_dict())
    second.load_state(first.state())
    for known in (whole, second):
        known.observe(torch.tensor([9, 7]))
        known.change()
    assert rows(whole, HUGE, 7, 9, 1) == rows(second, HUGE, 7, 9, 1)
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), second.buffers(), strict=True))


def initial(table: str, start: int, stop: int, width: int) -> Tensor:
    return initial_rows(table, start, stop, width, 0, 1.0)


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "sgd"])
def test_rows_that_change_hands_start_again(name):
    config = EmbeddingConfig(name="t", embedding_dim=8, num_embeddings=10**13, feature_names=["t"])
    model = torch.nn.ModuleDict({"x": EmbeddingCollection(tables=[config], device=torch.device("meta"))})
    optimizer = TableOptimizer(name=name, initial_accumulator=0.3)
    shard_collections(model, Sharding(), optimizer, CPU, rows={"t": 5})
    collection = model["x"]
    fill_accumulators(collection.fused_optimizer, optimizer)
    weight = collection.state_dict()["embeddings.t.weight"]
    fill_rows(weight, "t", initial)
    maps = manage_ids(model, {"t": ManagedIds(rows=5, interval=2, evict="lru")}, initial, optimizer, CPU)

    def step(*ids: int) -> Tensor:
        jagged = KeyedJaggedTensor(
            ["t"], torch.tensor(ids), lengths=torch.tensor([len(ids)]), length_per_key=[len(ids)]
        )
        found = collection(jagged)["t"].values()
        if torch.is_grad_enabled():
            found.sum().backward()
        return found.detach()

    fresh = initial("t", 0, 5, 8)
    table = weight.local_shards()[0].tensor
    step(HUGE), step(HUGE, 6)
    assert torch.equal(table[:4], fresh[:4])  # nobody has a row yet: only the last was trained
    with torch.no_grad():
        assert torch.equal(step(HUGE), table[4:])
    step(HUGE)  # begins an interval: HUGE and 6 have rows now, and HUGE's is trained
    (of_huge,) = maps["t"].rows(torch.tensor([HUGE])).tolist()
    assert of_huge != 4
    assert not torch.equal(table[of_huge], fresh[of_huge])
    with torch.no_grad():
        step(1, 2, 3, 4)  # evaluation changes nothing
    assert maps["t"].steps == 1
    step(1, 2, 3, 4)
    for _ in range(2):
        step(1, 2, 3, 4)  # more ids than there are rows, and all newer than HUGE
    step(999)  # begins an interval: HUGE has lost its row, and nobody has trained it since
    assert maps["t"].rows(torch.tensor([HUGE, 999])).tolist() == [4, 4]
    assert of_huge in maps["t"].rows(torch.tensor([1, 2, 3, 4])).tolist()
    assert torch.equal(table[of_huge], fresh[of_huge])
    for states in fused_state(collection.fused_optimizer).values():
        for state in states.values():
            assert state.local_shards()[0].tensor[of_huge].unique().item() == pytest.approx(0.3)


def test_what_cannot_work_is_named():
    with pytest.raises(ValueError, match="at least 2 rows"):
        ManagedIds(rows=1)
    with pytest.raises(ValueError, match=r"admit_after is 5.*interval has 3 steps"):
        ManagedIds(rows=9, interval=3, admit_after=5)
    cached = Storage(default=TableStorage(memory="uvm_caching"))
    with pytest.raises(ValueError, match=r"table 'item'.*uvm_caching.*set it to uvm or device"):
        check_managed("item", ManagedIds(rows=9), cached, Sharding())
    with pytest.raises(ValueError, match=r"'item'.*data_parallel.*row_wise"):
        check_managed("item", ManagedIds(rows=9), Storage(), Sharding(tables={"item": "data_parallel"}))
    check_managed("item", ManagedIds(rows=9), Storage(), Sharding(tables={"user": "data_parallel"}))
