"""Part of the leakage check: number, order, codes and labels of the samples, in the order of their files."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.leakage_findings import Findings
from data_prep.leakage_kernels import EARLIER, LATER, count_users
from data_prep.recipe import SPLITS
from laser.schema import Schema


class Survey:
    """Takes the samples batch by batch.

    Args:
        schema: of the data set.
        report: content of its ``report.json``.
        found: where problems are noted.
    """

    def __init__(self, schema: Schema, report: dict[str, Any], found: Findings) -> None:
        self.schema, self.report, self.found = schema, report, found
        self.columns = ["row", *(f.name for f in (schema.user, schema.item, schema.timestamp, schema.label))]
        """Columns that ``see`` needs."""
        self.samples_of_users = np.zeros(schema.user.cardinality or 1, np.int64)
        """Number of samples by user code."""
        self._rows = dict.fromkeys(SPLITS, 0)
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._strays = {schema.user.name: 0, schema.item.name: 0, schema.label.name: 0}

    @property
    def total(self) -> int:
        """Samples seen."""
        return sum(self._rows.values())

    def see(self, split: str, rows: dict[str, np.ndarray]) -> None:
        """Take the next rows of a split."""
        if not len(rows["row"]):
            return
        before, count = self._rows[split], len(rows["row"])
        misplaced = (rows["row"] != np.arange(before, before + count)).any()
        self.found.add(misplaced, f"`row` of split {split!r} does not count its samples from 0")
        time = rows[self.schema.timestamp.name].astype(np.int64)
        late = (time[1:] < time[:-1]).any() or time[0] < self._last.get(split, time[0])
        self.found.add(late, f"samples of split {split!r} are not in the order of time")
        self._first[split] = min(int(time.min()), self._first.get(split, int(time[0])))
        self._last[split] = max(int(time.max()), self._last.get(split, int(time[0])))
        self._rows[split] += count
        for feature in (self.schema.user, self.schema.item):
            code = rows[feature.name]
            outside = (code < self._lowest(feature.name)) | (code >= (feature.cardinality or 1))
            self._strays[feature.name] += int(outside.sum())
        label = rows[self.schema.label.name]
        self._strays[self.schema.label.name] += int(((label != 0) & (label != 1)).sum())
        count_users(rows[self.schema.user.name].astype(np.int64), self.samples_of_users)

    def _lowest(self, feature: str) -> int:
        return 0 if self.report.get("ids", {}).get(feature, {}).get("unknown") else 1

    def judge(self) -> None:
        """Note what is wrong with the samples seen."""
        for split in SPLITS:
            have, wanted = self._rows[split], self.report["samples"][split]["samples"]
            self.found.add(have != wanted, f"split {split!r} has {have} samples, its report says {wanted}")
        for feature in (self.schema.user, self.schema.item):
            strays, lowest = self._strays[feature.name], self._lowest(feature.name)
            outside = f"code outside {lowest} ... {feature.cardinality} - 1"
            self.found.add(strays > 0, f"{strays} samples have a {feature.name} {outside}")
        strays = self._strays[self.schema.label.name]
        self.found.add(strays > 0, f"{strays} samples have a label other than 0 and 1")
        if self.report["split"]["way"] != "by_time":
            return
        for one, other in zip(EARLIER, LATER, strict=True):
            earlier, later = SPLITS[one], SPLITS[other]
            if earlier in self._last and later in self._first:
                crossed = self._last[earlier] > self._first[later]
                self.found.add(crossed, f"{earlier} samples lie after {later} samples in time")
