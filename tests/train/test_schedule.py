"""Learning rates over a run."""

from __future__ import annotations

import math

import pytest
import torch

from laser.train.schedule import Schedule, build_schedule


def rates(schedule: Schedule, warm_up: int, steps: int, all_steps: float = 0) -> list[float]:
    """Factor of each of the first steps, as the scheduler sets it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build_schedule(optimizer, schedule, warm_up, lambda: all_steps)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_constant_is_the_warm_up_alone():
    assert rates(Schedule(), 4, 7) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert rates(Schedule(), 0, 2) == [1.0, 1.0]


def test_linear_falls_to_the_final_fraction_and_stays():
    schedule = Schedule(shape="linear", steps=6, final_fraction=0.2)
    assert rates(schedule, 2, 9) == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


def test_cosine_over_the_steps_of_the_trainer():
    half = 0.5 * (1 + math.cos(math.pi / 4))
    expected = [1.0, half, 0.5, 1 - half, 0.0, 0.0]
    assert rates(Schedule(shape="cosine"), 0, 6, all_steps=4) == pytest.approx(expected, abs=1e-12)


def test_a_run_that_ends_in_its_warm_up_is_legal():
    assert rates(Schedule(shape="cosine"), 4, 2, all_steps=1) == [0.25, 0.5]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Schedule(shape="cosine"), "shape is cosine.*no end; set model.schedule.steps"),
        (Schedule(shape="linear", steps=5), "steps is 5.*warm_up_steps 10"),
        (Schedule(final_fraction=1.5), "final_fraction is 1.5"),
    ],
)
def test_what_cannot_be_meant_is_refused(schedule, words):
    with pytest.raises(ValueError, match=words):
        rates(schedule, 10, 1, all_steps=math.inf)
