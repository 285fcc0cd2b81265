"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class ExponentialMovingAverage(Generic[Model]):
    """A copy of a model with the moving average of its weights.

    After update ``t`` (counted from 1) ``average = d * average + (1 - d) * model`` with
    ``d = min(decay, (1 + t) / (10 + t))``, so that the random initial weights are soon forgotten.
    Floating-point buffers (running statistics) are averaged too; integer buffers are copied.

    Attributes:
        model: averaged copy, in evaluation mode and without gradients.
        updates: number of updates so far.
        weight: ``1 - d`` of the current update, float32 scalar on the model's device.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self.weight = torch.zeros((), device=next(model.parameters()).device)

    def update(self, model: nn.Module) -> None:
        """Update the average with ``model``, which has the same parameters and buffers."""
        self.advance()
        self.follow(model, self.weight)

    def advance(self) -> None:
        """Count an update: its part on the host."""
        self.updates += 1
        self.weight.fill_(1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))

    @torch.no_grad()
    def follow(self, model: nn.Module, weight: Tensor) -> None:
        """Move the average towards ``model`` by ``weight``, a tensor on the device: the device's part of an update."""
        averages, values = [], []
        for average, value in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, [weight.to(average.dtype) for average in averages])

    def state_dict(self) -> dict[str, Any]:
        """Weights and number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
