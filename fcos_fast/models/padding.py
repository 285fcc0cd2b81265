"""Excludes the padding of a batch from the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fcos_fast.assignment import BACKGROUND, IGNORED, Level, Targets


def ignore_outside(targets: Targets, levels: Sequence[Level], sizes: Tensor) -> Targets:
    """Label the locations in the padding as ignored.

    Args:
        targets: targets of B images.
        levels: levels of the targets.
        sizes: (B, 2); height and width of the images without padding, in pixels.
    """
    points = torch.cat([level.points(sizes.device) for level in levels])  # (P, 2), x and y
    outside = (points >= sizes.flip(1)[:, None, :]).any(dim=-1)  # (B, P)
    labels = torch.where(outside, IGNORED, targets.labels)
    positive = labels > BACKGROUND
    totals = torch.stack(
        (positive.sum(dtype=torch.float32), torch.where(positive, targets.centerness, 0.0).sum())
    )
    return replace(targets, labels=labels, totals=totals)
