"""Everything that training changes, and how it is saved and restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.random_state import random_state, set_random_state
from fcos_fast.models import Detector


@dataclass
class TrainState:
    """The state of a run between two epochs.

    Attributes:
        model: model being trained.
        optimizer: optimizer of its parameters.
        ema: moving average of its weights, or None.
        epoch: number of finished epochs; the last may have been partial.
        step: number of optimizer steps.
        best: best average precision so far.
        stale: number of evaluations since then.
    """

    model: Detector
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage[Detector] | None
    epoch: int = 0
    step: int = 0
    best: float = 0.0
    stale: int = 0

    @property
    def averaged(self) -> Detector:
        """The model to evaluate: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.model

    def state_dict(self) -> dict[str, Any]:
        """The whole state and the random state of the process; tensors are references, not copies."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "rng": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.stale = state.get("stale", 0)  # older checkpoints have none
        set_random_state(state["rng"])
