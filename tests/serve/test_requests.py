"""Requests that are odd or wrong: a defined answer, or one clear sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from laser.seqvault import SeqVault
from laser.serve import Request, Scorer
from laser.serve.ids import UNCODED, store_key

NOW = 1_700_000_000
PHONE = {"device": 1}
ITEMS = [f"item-{code}" for code in range(1, 9)]


@pytest.fixture(scope="module")
def scorer(trained, prepared: Path, tmp_path_factory) -> Iterator[Scorer]:
    """A scorer on a store of its own, which tests may append to under users of their own."""
    vault = shutil.copytree(prepared / "vault", tmp_path_factory.mktemp("store") / "vault")
    with SeqVault.open(vault, "a") as opened:
        yield Scorer(trained("laser") / "bundle", opened)


def test_unknown_user_is_one_without_history(scorer):
    found = scorer.score("user-unheard-of", ITEMS, PHONE, NOW)
    assert found.dtype == np.float32
    assert ((found > 0) & (found < 1)).all()
    before_everything = scorer.score("user-9", ITEMS, PHONE, 0)
    np.testing.assert_array_equal(found, before_everything)
    assert np.abs(scorer.score("user-9", ITEMS, PHONE, NOW) - found).max() > 1e-3


def test_no_candidates(scorer):
    assert scorer.score("user-9", [], PHONE, NOW).shape == (0,)
    assert scorer.score_many([]) == []
    first, none, last = scorer.score_many([Request("user-9", i, PHONE, NOW) for i in (ITEMS, [], ITEMS[:1])])
    assert len(none) == 0
    np.testing.assert_allclose(last, first[:1], rtol=0, atol=2e-6)


def test_unknown_items_are_all_the_unknown_item(scorer):
    found = scorer.score("user-9", ["item-new", None, "item-9999", "item-3"], PHONE, NOW)
    assert found[0] == found[1] == found[2] != found[3]


def test_times(scorer):
    """In the past the history as it was; in the future all of it, older; at the ends of 64 bits a finite answer."""
    times = scorer.vault.read([9])["timestamp"]
    assert len(times) > 4
    past, later = (scorer.score("user-9", ITEMS, PHONE, int(t)) for t in (times[3], times[-1] + 1))
    assert np.abs(past - later).max() > 1e-4
    future = scorer.score("user-9", ITEMS, PHONE, NOW + 10**9)
    assert np.abs(future - later).max() > 1e-4
    for end in (2**62, -(2**62)):
        assert np.isfinite(scorer.score("user-9", ITEMS, PHONE, end)).all()
    assert np.isfinite(scorer.score("user-9", ITEMS, PHONE)).all()  # the clock


def test_a_million_candidates(scorer):
    few = scorer.score("user-9", ITEMS, PHONE, NOW)
    found = scorer.score("user-9", ITEMS * 125_000, PHONE, NOW)
    np.testing.assert_allclose(found.reshape(-1, len(ITEMS)), np.tile(few, (125_000, 1)), rtol=0, atol=2e-6)
    nobody = scorer.score("nobody", np.array(ITEMS[:1] * 20_000), PHONE, NOW)
    assert np.ptp(nobody) < 1e-6


def test_context_for_each_candidate(scorer):
    each = scorer.score("user-9", ITEMS[:4], {"device": [0, 1, 2, None]}, NOW)
    alone = [scorer.score("user-9", [ITEMS[i]], {"device": d}, NOW)[0] for i, d in enumerate((0, 1, 2, None))]
    np.testing.assert_allclose(each, alone, rtol=0, atol=2e-6)


WRONG = {
    "user of another type": (Request(9, ITEMS, PHONE, NOW), "user 9 is a int; user is text here"),
    "no user": (Request(None, ITEMS, PHONE, NOW), "user is NoneType; give one raw id of user"),
    "several users": (Request(["user-9"], ITEMS, PHONE, NOW), "user is list"),
    "item of another type": (Request("user-9", [3], PHONE, NOW), "candidate 3 is a int; item is text here"),
    "an item for items": (Request("user-9", "item-3", PHONE, NOW), "candidates is a str; give a list"),
    "no list": (Request("user-9", 7, PHONE, NOW), "candidates is a int; give a list"),  # type: ignore[arg-type]
    "no context": (Request("user-9", ITEMS, {}, NOW), "context lacks 'device'"),
    "context of another kind": (Request("user-9", ITEMS, [1], NOW), "context is a list"),  # type: ignore[arg-type]
    "unknown context": (Request("user-9", ITEMS, PHONE | {"shelf": 1}, NOW), "context has 'shelf'; this model"),
    "context of another type": (Request("user-9", ITEMS, {"device": "phone"}, NOW), "context device 'phone' is a str"),
    "a truth": (Request("user-9", ITEMS, {"device": True}, NOW), "context device True is a bool"),
    "context out of range": (Request("user-9", ITEMS, {"device": 4}, NOW), "context device 4 is no code of device"),
    "negative context": (Request("user-9", ITEMS, {"device": -1}, NOW), "a code from 0 to 3"),
    "too few of context": (Request("user-9", ITEMS, {"device": [1]}, NOW), "context device has 1 values for 8"),
    "a huge context": (Request("user-9", ITEMS, {"device": 2**70}, NOW), "more than 64 bits"),
    "text for time": (Request("user-9", ITEMS, PHONE, "now"), "now 'now' is a str; expected a whole number"),
    "real time": (Request("user-9", ITEMS, PHONE, 1.5), "now 1.5 is a float"),
    "time past 62 bits": (Request("user-9", ITEMS, PHONE, 2**63), "expected a time within 62 bits"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_mistakes_are_told_in_a_sentence(scorer, wrong):
    request, message = wrong
    with pytest.raises(ValueError, match=r".") as told:
        scorer.score_many([Request("user-9", ITEMS, PHONE, NOW), request])
    assert message in str(told.value)
    assert len(str(told.value)) < 200


def test_a_new_user_is_known_from_the_first_event_on(scorer):
    before = scorer.score("visitor-1", ITEMS, PHONE, NOW)
    events = {"timestamp": [NOW - 20, NOW - 10], "item": ["item-3", "item-4"], "rating": [2, 2]}
    assert scorer.append(["visitor-1", "visitor-1"], events) == 2
    assert np.abs(scorer.score("visitor-1", ITEMS, PHONE, NOW) - before).max() > 1e-4
    np.testing.assert_array_equal(scorer.score("visitor-2", ITEMS, PHONE, NOW), before)
    assert UNCODED <= store_key("visitor-1") < 2**63


def test_what_is_kept_follows_the_store(scorer):
    """An append, one that comes late, and a deletion change the next answer as they would without anything kept."""
    plain = Scorer(scorer.bundle, scorer.vault, cache_bytes=0)

    def answers() -> np.ndarray:
        kept, fresh = (s.score("visitor-3", ITEMS, PHONE, NOW) for s in (scorer, plain))
        np.testing.assert_allclose(kept, fresh, rtol=0, atol=2e-6)
        return kept

    seen = [answers()]
    for time, item in [(NOW - 900, "item-1"), (NOW - 300, "item-2"), (NOW - 600, "item-5"), (NOW - 300, "item-6")]:
        scorer.append(["visitor-3"], {"timestamp": [time], "item": [item], "rating": [1]})
        seen.append(answers())
    scorer.vault.delete_user(store_key("visitor-3"))
    np.testing.assert_array_equal(answers(), seen[0])
    assert all(np.abs(a - b).max() > 1e-5 for a, b in pairwise(seen))


def test_events_are_checked(scorer):
    good = {"timestamp": [NOW], "item": ["item-1"], "rating": [1]}
    for change, message in [
        ({"rating": [9]}, "event rating 9 is no code"),
        ({"timestamp": ["soon"]}, "timestamp 'soon' is a str"),
        ({"item": [1]}, "event item 1 is a int"),
        ({"item": []}, "there are 1 users, but 0 values of item"),
        ({"shelf": [1]}, "an event of this model has the fields timestamp, item, rating"),
    ]:
        with pytest.raises(ValueError, match=message):
            scorer.append(["visitor-4"], good | change)
    assert scorer.vault.lengths([store_key("visitor-4")]).tolist() == [0]


def test_items_newer_than_the_model_are_unknown(scorer):
    """A store that grew with the log has codes behind those of the model."""
    key = store_key("visitor-5")
    scorer.vault.append([key], {"timestamp": [NOW - 5], "item": [81 + 7], "rating": [1]})
    newer = scorer.score("visitor-5", ITEMS, PHONE, NOW)
    scorer.append(["visitor-6"], {"timestamp": [NOW - 5], "item": ["item-unheard-of"], "rating": [1]})
    np.testing.assert_array_equal(newer, scorer.score("visitor-6", ITEMS, PHONE, NOW))


def test_another_store_is_refused(trained, tmp_path):
    from laser.seqvault import Field

    with SeqVault.create(tmp_path / "vault", [Field("time", "int64"), Field("song", "uint32")]) as vault:
        with pytest.raises(ValueError, match=r"keeps time, song; the model of bundle .* wants timestamp, item, rating"):
            Scorer(trained("laser") / "bundle", vault)
