"""Weights of the classes in the classification loss, for datasets in which some are rare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fcos_fast.models.config import DetectorConfig


def balanced(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights inversely proportional to the number of boxes of each class, with mean 1 over the boxes.

    A class without boxes has weight 1.
    """
    boxes = np.array(counts, dtype=np.float64)
    weights = boxes.sum() / ((boxes > 0).sum() * np.maximum(boxes, 1))
    return tuple(round(w, 6) if n else 1.0 for w, n in zip(weights.tolist(), counts, strict=True))


def class_weights(config: DetectorConfig) -> Tensor | None:
    """(C,) float32, the weights of the configuration; None if it has none.

    Raises:
        ValueError: not one weight per class, or ``balanced``, which depends on a dataset.
    """
    weights = config.class_weights
    if weights is None:
        return None
    if isinstance(weights, str):
        raise ValueError(
            f"class_weights={weights!r} depends on the training split, which fcos-fast train reads; give numbers, such "
            "as those of fcos_fast.models.class_weights.balanced"
        )
    if len(weights) != config.num_classes:
        raise ValueError(
            f"class_weights has {len(weights)} values for {config.num_classes} classes; give one per class"
        )
    return torch.tensor(weights)


def weighted_sum(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """(B,), the sum of the weighted losses of each image.

    Args:
        loss: function of logits and labels without reduction.
        logits: (B, ..., C).
        labels: (B, ...), class labels as :func:`fcos_fast.ops.sigmoid_focal_loss` accepts them.
        weights: (C,) float32.
    """
    return (loss(logits, labels) * weights).flatten(1).sum(dim=1)
