import math

import torch

from laser.model.recency import EventRecency, SegmentRecency, age_bucket, owner, rank_from_newest


def test_owner_and_rank_with_empty_groups():
    off = torch.tensor([0, 0, 2, 2, 5])
    owner_T = owner(off, 5)
    assert owner_T.tolist() == [1, 1, 3, 3, 3]
    assert rank_from_newest(off, owner_T).tolist() == [1, 0, 2, 1, 0]


def test_age_buckets_at_their_borders():
    minutes = [0, 0.999, 1, 2.999, 3, 6.999, 7, 2**30, 2**40]
    assert age_bucket(torch.tensor([m * 60 for m in minutes])).tolist() == [0, 0, 1, 1, 2, 2, 3, 30, 31]
    # Just at every power of two, where a float32 logarithm may round to either side.
    powers = torch.tensor([60.0 * (2**k - 1) for k in range(20)])
    assert age_bucket(powers).tolist() == [math.floor(math.log2(1 + p / 60)) for p in powers.tolist()]


def test_event_recency_is_of_age_and_clipped_rank():
    recency = EventRecency(4, ranks=2)
    age_T, rank_T = torch.tensor([600.0, 60.0, 1.0]), torch.tensor([2, 1, 0])
    expected = recency.age.weight[[3, 1, 0]] + recency.rank.weight[[1, 1, 0]]
    (ages, age_row_T), (ranks, rank_row_T) = recency(age_T, rank_T)
    torch.testing.assert_close(ages[age_row_T] + ranks[rank_row_T], expected)


def test_segment_recency_counts_from_the_newest_of_each_sample():
    recency = SegmentRecency(4, ranks=2)
    out = recency(torch.zeros(4, 4), torch.tensor([0, 3, 3, 4]))
    torch.testing.assert_close(out, recency.rank.weight[[1, 1, 0, 0]])
