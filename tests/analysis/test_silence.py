"""Shares of silenced events against counts by hand, and against loops over events."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from laser.analysis import GateFile, by_action, by_activity, by_age, by_match, by_recency, segments, silence
from laser.data.prepared import PreparedData

SAMPLES = [(7, [(0.01, 0.5), (0.02, 0.01), (0.9, 0.03)]), (8, []), (9, [(0.4, 0.01), (0.03, 0.2)])]


def test_reading_gives_samples_segments_and_ranks(write_gates: Callable[..., Path]) -> None:
    gates = GateFile(write_gates(SAMPLES))
    assert (gates.kind, gates.heads, gates.segment_width, len(gates)) == ("sigmoid", 2, 2, 3)
    first, second = gates.chunks()
    assert first.event_off_B1.tolist() == [0, 3, 3]
    assert first.event_off_G1.tolist() == [0, 1, 3]
    assert first.rank_E.tolist() == [2, 1, 0]
    assert first.segment_E.tolist() == [0, 1, 1]
    np.testing.assert_allclose(second.gate_EH, [[0.4, 0.01], [0.03, 0.2]], rtol=1e-3)
    alone = gates.sample(0)
    assert (len(alone), alone.event_off_G1.tolist()) == (1, [0, 1, 3])
    assert gates.sample(1).event_off_G1.tolist() == [0]
    with pytest.raises(ValueError, match="no row 5"):
        gates.sample(5)


def test_counts_by_recency_by_hand(write_gates: Callable[..., Path]) -> None:
    (found,) = silence(GateFile(write_gates(SAMPLES)), [by_recency((0, 1, 2))])
    assert found.names == ("0", "1", "≥ 2")
    assert found.events_R.tolist() == [2, 2, 1]
    assert found.silent_RH.tolist() == [[1, 1], [1, 2], [1, 0]]
    assert found.silent_R.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.mean_RH[0], [(0.9 + 0.03) / 2, (0.03 + 0.2) / 2], rtol=1e-3)
    np.testing.assert_allclose(found.contribution_RH.sum(0), 1)
    np.testing.assert_allclose(found.contribution_RH[0, 0], 0.93 / 1.36, rtol=1e-3)
    np.testing.assert_allclose(found.population_R, [0.4, 0.4, 0.2])
    assert "50.0 %" in str(found.table())
    assert "<td>≥ 2</td>" in found._repr_html_()


def test_groups_of_action_activity_and_age(write_gates: Callable[..., Path], prepared: Path) -> None:
    path = write_gates(SAMPLES, ratings=[[1, 2, 2], [], [0, 1]], earlier=[60, 0, 7])
    with PreparedData(prepared) as data:
        action, activity, age = silence(GateFile(path), [by_action(data, "rating"), by_activity((0, 50)), by_age()])
        with pytest.raises(ValueError, match=r"no field 'tags'.*rating"):
            by_action(data, "tags")
        with pytest.raises(ValueError, match=r"'nothing'.*category, tags"):
            by_match(data, "nothing")
    assert dict(zip(action.names, action.events_R.tolist())) == {"unknown": 1, "#1": 2, "#2": 2}
    assert dict(zip(activity.names, activity.events_R.tolist())) == {"0–49": 2, "≥ 50": 3}  # noqa: RUF001
    assert dict(zip(age.names, age.events_R.tolist())) == {"under 1 hour": 5}


@pytest.mark.parametrize("feature", ["category", "tags"])
def test_match_with_the_target_equals_a_loop(write_gates: Callable[..., Path], prepared: Path, feature: str) -> None:
    random = np.random.default_rng(1)
    targets = random.integers(0, 81, 30)
    items = [random.integers(0, 81, n).tolist() for n in random.integers(0, 9, 30)]
    items[0] = [int(targets[0])] * 2
    samples = [(int(t), [(0.5,)] * len(i)) for t, i in zip(targets, items)]
    path = write_gates(samples, items=items)
    expected = dict.fromkeys(("none", "shares", "unknown", "same"), 0)
    with PreparedData(prepared) as data:
        (found,) = silence(GateFile(path), [by_match(data, feature)])
        sides = data.items[feature].reshape(len(data.items[feature]), -1)
    for target, events in zip(targets, items):
        for event in events:
            own, other = set(sides[target].tolist()) - {0}, set(sides[event].tolist()) - {0}
            same, known = event == target and event != 0, bool(own and other)
            name = "same" if same else "unknown" if not known else "shares" if own & other else "none"
            expected[name] += 1
    names = (f"no {feature} in common", f"shares {feature}", f"{feature} unknown", "same item")
    assert dict(zip(found.names, found.events_R.tolist())) == {
        name: n for name, n in zip(names, expected.values()) if n
    }


def test_silent_segments_and_mass_by_hand(write_gates: Callable[..., Path]) -> None:
    found = segments(GateFile(write_gates(SAMPLES)), thresholds=(0.05, 0.45))
    assert found.count == 3
    np.testing.assert_allclose(found.silent_SH, [[1 / 3, 1 / 3], [2 / 3, 2 / 3]])
    np.testing.assert_allclose(found.silent_S, [0, 1 / 3])
    np.testing.assert_allclose(found.mean_mass_H, [1.36 / 3, 0.75 / 3], rtol=1e-3)
    np.testing.assert_allclose(found.mass_NH.sum(0), 1)
    share = np.array([0.02, 0.9]) / 0.92, np.array([0.4, 0.03]) / 0.43
    effective = [1, *(np.exp(-(s * np.log(s)).sum()) for s in share)]
    np.testing.assert_allclose(found.effective_H[0], np.mean(effective), rtol=1e-3)
    assert "33.3 %" in str(found.table())


def test_what_is_no_file_of_gates_is_said(tmp_path: Path, write_gates: Callable[..., Path], prepared: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for path, says in (
        (tmp_path / "none.parquet", "laser test --gates"),
        (tmp_path / "broken.parquet", "no Parquet"),
        (prepared / "items.parquet", "no gates"),
    ):
        with pytest.raises(ValueError, match=says):
            GateFile(path)
    with pytest.raises(ValueError, match="between 0 and 1"):
        silence(GateFile(write_gates(SAMPLES)), [by_recency()], threshold=0)
