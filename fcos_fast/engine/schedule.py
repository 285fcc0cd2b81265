"""The learning rate as a function of the step, without state to save and restore."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Literal

from fcos_fast.fields import check_fields, checked


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes over the run, as factors of ``optimizer.lr``.

    Attributes:
        kind: ``cosine``, ``steps`` or ``constant`` after a warm-up; or ``onecycle``, which rises and then falls to
            almost 0, both along a cosine (Smith and Topin, 2017; the curve of torch's ``OneCycleLR``).
        warmup: ``linear`` from ``warmup_factor`` to 1, or ``constant`` at ``warmup_factor`` (official FCOS).
            ``onecycle`` has no warm-up.
        warmup_steps: length of the warm-up in steps; by default 5 % of the run, at most 1000.
        warmup_factor: initial factor of the warm-up. Official FCOS: 1/3 for 500 steps.
        milestones: positions in ``milestone_unit`` at which schedule ``steps`` multiplies the learning rate by
            ``gamma``. 2/3 and 8/9 of a run are steps 60,000 and 80,000 of 90,000 in the published recipes.
        milestone_unit: unit of the milestones: ``run`` for fractions of the run, ``epoch`` or ``step``.
        gamma: factor of schedule ``steps`` at each milestone.
        final_factor: final factor of schedule ``cosine``.
        rise: fraction of the run during which schedule ``onecycle`` rises.
    """

    kind: Literal["cosine", "steps", "onecycle", "constant"] = "cosine"
    warmup: Literal["linear", "constant"] = "linear"
    warmup_steps: int | None = checked(None, lambda n: n is None or n >= 0, "0 or more, or None")
    warmup_factor: float = 0.001
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    milestone_unit: Literal["run", "epoch", "step"] = "run"
    gamma: float = 0.1
    final_factor: float = 0.01
    rise: float = checked(0.3, lambda rise: 0 < rise < 1, "a number between 0 and 1")

    def __post_init__(self) -> None:
        check_fields(self, "schedule.")
        end = 1 if self.milestone_unit == "run" else math.inf
        if sorted(self.milestones) != list(self.milestones) or not all(0 < m < end for m in self.milestones):
            accepted = "between 0 and 1 (fractions of the run)" if end == 1 else "positive"
            raise ValueError(f"schedule.milestones={self.milestones}; expected rising numbers, {accepted}")

    def in_steps(self, total_steps: int, steps_per_epoch: int) -> ScheduleConfig:
        """The same schedule with its milestones in steps.

        Raises:
            ValueError: a milestone is beyond the end of the run.
        """
        unit = {"run": total_steps, "epoch": steps_per_epoch, "step": 1}[self.milestone_unit]
        milestones = tuple(float(round(m * unit)) for m in self.milestones)
        in_the_run = self.milestone_unit == "run" or not milestones or milestones[-1] < total_steps
        if self.kind == "steps" and not in_the_run:
            raise ValueError(
                f"schedule.milestones={self.milestones} ({self.milestone_unit}): the last is at step "
                f"{milestones[-1]:.0f} of {total_steps}; give milestones within the run, or fractions of it with "
                "schedule.milestone_unit run"
            )
        # A short run can round its first milestones to 0 steps.
        kept = tuple(m for m in milestones if m > 0)
        return replace(self, milestones=kept, milestone_unit="step")


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Factor of the base learning rate for optimizer step ``step`` (0-based) of ``total_steps``.

    The milestones of ``config`` are in steps (:meth:`ScheduleConfig.in_steps`) or as fractions of the run.
    """
    if config.kind == "onecycle":
        peak = config.rise * total_steps - 1
        if step < peak:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1 / 25e4, (step - peak) / max(total_steps - 1 - peak, 1))

    warmup_steps = config.warmup_steps if config.warmup_steps is not None else min(total_steps // 20, 1000)
    if step < warmup_steps:
        if config.warmup == "constant":
            return config.warmup_factor
        return config.warmup_factor + (1 - config.warmup_factor) * step / warmup_steps

    if config.kind == "cosine":
        return _cosine(1.0, config.final_factor, (step - warmup_steps) / max(total_steps - warmup_steps, 1))
    if config.kind == "steps":
        unit = total_steps if config.milestone_unit == "run" else 1
        return config.gamma ** bisect_right([round(m * unit) for m in config.milestones], step)
    return 1.0
