"""The cost model: work by hand, the crossing, and what overrides it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from laser.ops.segmented_attention.regime import Load, Rates, cheaper, choose, load_of, seconds

ARITHMETIC = Rates(dense=1.0, absorbed=1.0, projected=1.0, memory=1e30)
"""Memory costs nothing: seconds are multiply-accumulates."""


def load(candidates: int, length: int = 1000, histories: int = 3, **sizes: int) -> Load:
    seen = histories * candidates * length
    return Load(events=histories * length, seen=seen, samples=histories * candidates, **sizes)


def test_arithmetic_by_hand():
    """L = 1000, D = 128, H = 2, Q = 16, segments of 10, for one history and one sample."""
    one = load(1, histories=1)
    assert seconds("absorbed", one, ARITHMETIC) == 2 * 128 * 32 + 1000 * 2 * 2 * 128 + 100 * 128 * 128
    assert seconds("projected", one, ARITHMETIC) == 1000 * 128 * 160 + 128 * 32 + 1000 * 160


def test_few_candidates_are_absorbed_and_many_projected():
    forms = [cheaper(load(candidates), ARITHMETIC) for candidates in range(1, 40)]
    assert forms == ["absorbed"] * 10 + ["projected"] * 29  # 2.048e7 / (2.158e6 - 1.64e5) = 10.27


def test_the_crossing_does_not_depend_on_the_number_of_histories_and_hardly_on_their_length():
    for candidates in (8, 12):
        forms = {cheaper(load(candidates, length, n), ARITHMETIC) for length in (200, 10_000) for n in (1, 50)}
        assert len(forms) == 1


def test_memory_counts_where_it_is_slow():
    slow = replace(ARITHMETIC, memory=1e-3)
    for form in ("absorbed", "projected"):
        assert seconds(form, load(4), slow) > 2 * seconds(form, load(4), ARITHMETIC)
        assert seconds(form, load(4, itemsize=2), slow) < seconds(form, load(4), slow)


@pytest.mark.parametrize("candidates", [1, 200])
def test_an_override_holds(candidates):
    cpu = torch.device("cpu")
    assert choose(load(candidates), cpu, "absorbed") == "absorbed"
    assert choose(load(candidates), cpu, "projected") == "projected"
    assert choose(load(candidates), cpu) == ("absorbed" if candidates == 1 else "projected")


def test_the_load_of_a_batch():
    found = load_of(torch.tensor([0, 3, 3, 10]), torch.tensor([2, 0, 2, 1]), width=8)
    assert found == Load(events=10, seen=7 + 3 + 7, samples=4, width=8)


def test_nothing_to_do_is_absorbed():
    assert cheaper(Load(events=0, seen=0, samples=0), ARITHMETIC) == "absorbed"
