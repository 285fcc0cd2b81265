"""Learning rates compared with closed forms and torch's schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from fcos_fast.engine.schedule import ScheduleConfig, learning_rate_factor


def factors(config, total):
    return [learning_rate_factor(config, step, total) for step in range(total)]


def torch_rates(scheduler_of, total):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("total", "rise"), [(100, 0.3), (1480, 0.25), (7, 0.5)])
def test_onecycle_is_torchs(total, rise):
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=total, pct_start=rise, cycle_momentum=False
        ),
        total,
    )
    assert factors(ScheduleConfig(kind="onecycle", rise=rise), total) == pytest.approx(expected, abs=1e-12)


def test_onecycle_of_very_short_runs():
    for total in (1, 2, 3):
        assert all(0 < f <= 1 for f in factors(ScheduleConfig(kind="onecycle"), total))


def test_steps_with_linear_warmup_is_torchs():
    config = ScheduleConfig(
        kind="steps", warmup_steps=10, warmup_factor=0.1, milestones=(0.6, 0.8), gamma=0.5
    )
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.ChainedScheduler(
            [
                torch.optim.lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=10),
                torch.optim.lr_scheduler.MultiStepLR(o, milestones=[60, 80], gamma=0.5),
            ]
        ),
        100,
    )
    assert factors(config, 100) == pytest.approx(expected, abs=1e-12)


def test_official_fcos_1x():
    """90k steps at 0.01, a third of it for the first 500, a tenth of it from 60k, a hundredth from 80k."""
    config = ScheduleConfig(kind="steps", warmup="constant", warmup_steps=500, warmup_factor=1 / 3)
    steps = {0: 1 / 3, 499: 1 / 3, 500: 1, 59_999: 1, 60_000: 0.1, 79_999: 0.1, 80_000: 0.01, 89_999: 0.01}
    for step, expected in steps.items():
        assert learning_rate_factor(config, step, 90_000) == pytest.approx(expected)


def test_cosine_closed_form():
    config = ScheduleConfig(kind="cosine", warmup_steps=20, warmup_factor=0.0, final_factor=0.1)
    result = factors(config, 120)
    assert result[10] == pytest.approx(0.5)
    for step in range(20, 120):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 100))
        assert result[step] == pytest.approx(expected)


def test_default_warmup_is_a_twentieth_and_never_long():
    config = ScheduleConfig(kind="constant")
    assert learning_rate_factor(config, 4, 100) < 1
    assert learning_rate_factor(config, 5, 100) == 1
    assert learning_rate_factor(config, 999, 10**6) < 1
    assert learning_rate_factor(config, 1000, 10**6) == 1


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"warmup_steps": -1}, "schedule.warmup_steps=-1; expected 0 or more"),
        ({"rise": 1.0}, "schedule.rise=1.0; expected a number between"),
        ({"milestones": (0.8, 0.5)}, "milestones"),
        ({"milestones": (8.0, 11.0)}, "fractions of the run"),
    ],
)
def test_bad_values_are_named(bad, names):
    with pytest.raises(ValueError, match=names):
        ScheduleConfig(**bad)


def test_milestones_in_steps_epochs_and_fractions_are_the_same_curve():
    common = {"kind": "steps", "warmup_steps": 5}
    fractions = ScheduleConfig(milestones=(0.5, 0.75), **common)
    epochs = ScheduleConfig(milestones=(2, 3), milestone_unit="epoch", **common).in_steps(40, 10)
    steps = ScheduleConfig(milestones=(20, 30), milestone_unit="step", **common).in_steps(40, 10)
    assert factors(fractions, 40) == factors(epochs, 40) == factors(steps, 40)
    assert factors(fractions, 40) == factors(fractions.in_steps(40, 10), 40)
    assert [factors(steps, 40)[i] for i in (19, 20, 30)] == pytest.approx([1, 0.1, 0.01])


def test_milestones_beyond_the_run_are_rejected():
    config = ScheduleConfig(kind="steps", milestones=(8, 11), milestone_unit="epoch")
    with pytest.raises(ValueError, match=r"\(8, 11\) \(epoch\): the last is at step 110 of 100"):
        config.in_steps(100, 10)
    with pytest.raises(ValueError, match="expected rising numbers, between 0 and 1"):
        ScheduleConfig(milestones=(8, 11))
    with pytest.raises(ValueError, match="expected rising numbers, positive"):
        ScheduleConfig(milestones=(0, 11), milestone_unit="step")
