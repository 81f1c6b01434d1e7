"""Which events gates silence, and which hold what is left: shares by group and head, in one pass over a file.

Legend of shape suffixes: E events of samples, packed; R groups; H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laser.analysis.gate_file import GatedSamples, GateFile
from laser.analysis.grouping import Grouping
from laser.report.table import Table, percent


@dataclass(frozen=True)
class Silence:
    """Counts of events by group; groups without events are left out.

    Args:
        title: what the groups are of.
        names: of R groups.
        threshold: a gate below it is silent.
        events_R: int64, number of events.
        silent_RH: int64, events that a head silences.
        silent_R: int64, events that every head silences.
        gates_RH: float64, sum of the gates.
    """

    title: str
    names: tuple[str, ...]
    threshold: float
    events_R: np.ndarray
    silent_RH: np.ndarray
    silent_R: np.ndarray
    gates_RH: np.ndarray

    @property
    def share_RH(self) -> np.ndarray:
        """Share of the group's events that a head silences."""
        return self.silent_RH / self.events_R[:, None]

    @property
    def mean_RH(self) -> np.ndarray:
        """Mean gate."""
        return self.gates_RH / self.events_R[:, None]

    @property
    def contribution_RH(self) -> np.ndarray:
        """Share of all that a head lets through that comes from the group: its gates over those of all events."""
        return self.gates_RH / self.gates_RH.sum(0)

    @property
    def population_R(self) -> np.ndarray:
        """Share of all events that are in the group: its contribution if all gates were equal."""
        return self.events_R / self.events_R.sum()

    def table(self) -> Table:
        """All of it, a row per group."""
        heads = range(self.gates_RH.shape[1])
        head = [self.title, "events", "of all"]
        head += [f"silent, head {h}" for h in heads] + ["silent in all heads"]
        head += [f"mean gate, head {h}" for h in heads] + [f"contribution, head {h}" for h in heads]
        rows = []
        for r, name in enumerate(self.names):
            cells = [name, f"{self.events_R[r]:,}", percent(self.population_R[r])]
            cells += [percent(value) for value in self.share_RH[r]] + [percent(self.silent_R[r] / self.events_R[r])]
            cells += [f"{value:.3f}" for value in self.mean_RH[r]]
            rows.append((*cells, *(percent(value) for value in self.contribution_RH[r])))
        return Table(tuple(head), tuple(rows))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def silence(gates: GateFile, groupings: Sequence[Grouping], threshold: float = 0.05) -> list[Silence]:
    """Shares of silenced events under several groupings.

    Args:
        gates: read once.
        groupings: each gives one result.
        threshold: a gate below it is silent.

    Raises:
        ValueError: when ``threshold`` is not between 0 and 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; a gate lies between 0 and 1")
    counts = [np.zeros((len(g.names), 2 * gates.heads + 2)) for g in groupings]
    for chunk in gates.chunks():
        for grouping, count in zip(groupings, counts, strict=True):
            count += _count(chunk, grouping, threshold)
    return [_result(g, count, threshold, gates.heads) for g, count in zip(groupings, counts, strict=True)]


def _count(chunk: GatedSamples, grouping: Grouping, threshold: float) -> np.ndarray:
    """Per group: events, events silent in all heads, per head silent events, per head the sum of gates."""
    group_E, groups = grouping.group(chunk), len(grouping.names)
    silent_EH = chunk.gate_EH < threshold
    values = [np.ones(len(group_E)), silent_EH.all(1), *silent_EH.T, *chunk.gate_EH.T]
    return np.stack([np.bincount(group_E, value, groups) for value in values], axis=1)


def _result(grouping: Grouping, count: np.ndarray, threshold: float, heads: int) -> Silence:
    used = np.flatnonzero(count[:, 0])
    whole = count[used, : 2 + heads].round().astype(np.int64)
    names = tuple(grouping.names[r] for r in used)
    return Silence(grouping.title, names, threshold, whole[:, 0], whole[:, 2:], whole[:, 1], count[used, 2 + heads :])
