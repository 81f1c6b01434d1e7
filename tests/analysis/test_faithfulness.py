"""Effects of masking against plain means, and intervals that know when gates are not faithful."""

import numpy as np
import pytest

from laser.analysis import faithfulness
from laser.analysis.faithfulness import CHOICES, effects_table


def masked(spread: dict[str, float], users: int = 60) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(users), 5)
    logit = random.normal(size=len(user))
    label = (random.random(len(user)) < 1 / (1 + np.exp(-2 * logit))).astype(np.int8)
    columns = {"user": user, "label": label, "logit": logit}
    return columns | {f"logit_{name}": logit + scale * random.normal(size=len(user)) for name, scale in spread.items()}


def test_faithful_gates_are_told_from_others() -> None:
    columns = masked({"silenced": 0.1, "oldest": 0.1, "random": 0.8, "open": 2.0})
    found = {effect.choice: effect for effect in faithfulness(columns)}
    for choice, effect in found.items():
        change = np.abs(columns[f"logit_{choice}"] - columns["logit"]).mean()
        assert effect.change == pytest.approx(change)
        assert effect.change_interval[0] < change < effect.change_interval[1]
    assert found["random"].above_silenced[1] > 0
    assert found["open"].above_silenced[1] > found["random"].above_silenced[2]
    assert found["oldest"].above_silenced[1] < 0 < found["oldest"].above_silenced[2]
    assert found["silenced"].auc > found["open"].auc
    assert found["silenced"].log_loss < found["open"].log_loss
    assert CHOICES["open"] in str(effects_table([*found.values()]))


def test_no_samples_are_said() -> None:
    with pytest.raises(ValueError, match="no samples"):
        faithfulness({"user": np.zeros(0)})
