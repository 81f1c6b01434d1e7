"""The metrics of a click-through-rate model, exact for any number of rows and processes.

Legend of shape suffixes: B samples of a batch; N rows of a block.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from laser.train.metrics_areas import MAX_GROUP, MAX_ROWS, SortedRuns, join, sorted_run
from laser.train.metrics_exchange import gather
from laser.train.metrics_sums import MAX_TERMS, SCALE, ProbabilitySums, exact_sum


class CTRMetrics(Metric):
    """AUC, GAUC, log-loss, normalised entropy and calibration of logits against labels.

    * ``auc``: exact area under the ROC curve of the float32 logits, ties at their average rank.
    * ``gauc``: mean of the per-user AUCs, weighted by the user's rows; users of one class have none and are left out.
    * ``log_loss``: mean binary cross-entropy in nats, from the logits.
    * ``normalized_entropy``: log-loss over the entropy of the observed click rate (He et al., 2014).
    * ``ece``: expected calibration error over ``bins`` equal-width probability bins, weighted by rows.
    * ``predicted_over_observed``: sum of probabilities over number of clicks.
    * ``samples``, ``users``: rows, and distinct users, of one class or both.

    What is not defined (no rows, one class only) is NaN. Rows wait on their device, go to the host in blocks, and from
    the fifth block on to files in the temporary directory (``TMPDIR``; 32 bytes a row, removed on ``reset``, when the
    metric is freed, and at exit), so memory is bounded and small sets never touch the disk. ``compute`` works over the
    default process group if there is one: every rank must call it, ranks without rows too. All sums are integers, so
    the same rows give the same value to the last bit in any order, on any device and over any number of processes.

    Args:
        bins: of the expected calibration error.
        block_rows: rows that are held before they are sorted, at most 2**20; memory is some 500 bytes times this.
    """

    full_state_update = False
    logit: list[Tensor]
    label: list[Tensor]
    user: list[Tensor]

    def __init__(self, bins: int = 15, block_rows: int = 2**20) -> None:
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        assert 0 < block_rows <= MAX_TERMS // 4, block_rows  # a range has up to four times as many users
        self.block_rows = block_rows
        for name in ("logit", "label", "user"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.waiting = 0
        self.sums = ProbabilitySums(bins)
        self.all_rows = SortedRuns(block_rows, memory_runs=4)
        self.by_user = SortedRuns(block_rows, memory_runs=4)
        self.refused = np.zeros(3, np.int64)

    def update(self, logit_B: Tensor, label_B: Tensor, user_B: Tensor) -> None:
        """Add samples.

        Args:
            logit_B: scores, taken as float32.
            label_B: 0 or 1, any dtype.
            user_B: int64 user codes in [0, 2**31).
        """
        assert logit_B.shape == label_B.shape == user_B.shape, (logit_B.shape, label_B.shape, user_B.shape)
        for start in range(0, len(logit_B), self.block_rows):
            stop = start + self.block_rows
            self.logit.append(logit_B[start:stop].detach().float().clone())
            self.label.append(label_B[start:stop].detach().float().clone())
            self.user.append(user_B[start:stop].detach().long().clone())
            self.waiting += len(self.logit[-1])
            if self.waiting >= self.block_rows:
                self._flush()

    def forward(self, logit_B: Tensor, label_B: Tensor, user_B: Tensor) -> None:
        """Same as ``update``: the value of one batch says little about an AUC and would cost a sort."""
        self.update(logit_B, label_B, user_B)

    def _flush(self) -> None:
        if self.waiting == 0:
            return
        logit_N, label_N, user_N = (torch.cat(parts).cpu().numpy() for parts in (self.logit, self.label, self.user))
        self.logit, self.label, self.user, self.waiting = [], [], [], 0
        bad_3N = np.stack(
            [~np.isfinite(logit_N), (label_N != 0) & (label_N != 1), (user_N < 0) | (user_N >= MAX_GROUP)]
        )
        if bad_3N.any():
            # Refused in compute, on all ranks at once: raising here would leave the other ranks waiting.
            self.refused += bad_3N.sum(axis=1)
            good_N = ~bad_3N.any(axis=0)
            logit_N, label_N, user_N = logit_N[good_N], label_N[good_N], user_N[good_N]
        label_N = label_N == 1
        self.sums.add(logit_N, label_N)
        self.all_rows.add(sorted_run(np.zeros_like(user_N), logit_N, label_N))
        self.by_user.add(sorted_run(user_N, logit_N, label_N))

    def compute(self) -> dict[str, float]:
        """All metrics, the same on every rank.

        Raises:
            ValueError: when a score was not finite, a label not 0 or 1, or a user code out of range, on any rank.
        """
        self._flush()
        received = np.sum(gather(np.concatenate([self.refused, self.sums.to_array()])), axis=0)
        _refuse(*received[:3].tolist())
        sums = self.sums.from_array(received[3:])
        samples = int(sums.rows_C.sum())
        if samples >= MAX_ROWS:
            raise ValueError(
                f"{samples} samples to evaluate, expected fewer than {MAX_ROWS}; evaluate the split in parts"
            )
        auc, _ = _mean_auc(self.all_rows)
        gauc, users = _mean_auc(self.by_user)
        return {"auc": auc, "gauc": gauc, **sums.compute(), "samples": samples, "users": users}

    def reset(self) -> None:
        """Forget all samples and remove temporary files."""
        super().reset()
        self.waiting = 0
        self.refused[:] = 0
        for state in (self.sums, self.all_rows, self.by_user):
            state.reset()


def _refuse(scores: int, labels: int, users: int) -> None:
    again = "prepare the data set again with laser-prep"
    if scores:
        raise ValueError(
            f"{scores} predicted logits are NaN or infinite, expected finite numbers; "
            "the training diverged: lower the learning rate or clip gradients"
        )
    if labels:
        raise ValueError(f"{labels} labels of the evaluated split are not 0 or 1; {again}")
    if users:
        raise ValueError(f"{users} user codes of the evaluated split are not in [0, {MAX_GROUP}); {again}")


def _mean_auc(runs: SortedRuns) -> tuple[float, int]:
    """Mean AUC over the groups with both classes, weighted by rows; and the number of all groups."""
    edges, total = [np.zeros((0, 4), np.int64)], np.zeros(4, np.int64)
    for areas in runs.ranges():
        rows_G4 = areas.rows()
        # The first and the last group of a range may go on in its neighbours, which may lie on another rank.
        edges.append(rows_G4[[0, -1] if len(rows_G4) > 1 else slice(None)])
        total += _weigh(rows_G4[1:-1])
    joined = join(np.concatenate(gather(np.concatenate(edges))))
    total = np.sum(gather(total[None]), axis=(0, 1)) + _weigh(joined.rows())
    whole, fraction, rows, groups = total.tolist()
    return ((whole * SCALE + fraction) / (SCALE * rows) if rows else math.nan), groups


def _weigh(area_G4: np.ndarray) -> np.ndarray:
    """Sum of rows times AUC over the groups (whole part, then 2**-40 parts), their rows, and number of all groups."""
    _, negatives_G, positives_G, doubled_G = area_G4.T
    rows_G, pairs_G = negatives_G + positives_G, negatives_G.astype(np.float64) * positives_G
    both_G = pairs_G > 0
    value_G = rows_G[both_G] * (doubled_G[both_G] / (2 * pairs_G[both_G]))
    return np.array([*divmod(exact_sum(value_G), SCALE), int(rows_G[both_G].sum()), len(area_G4)], np.int64)
