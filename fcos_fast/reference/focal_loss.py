"""Sigmoid focal loss and its variant FL* (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcos_fast.assignment import IGNORED
from fcos_fast.reference.reduction import reduce


def _prepare(
    inputs: Tensor, targets: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, torch.dtype]:
    """Logits and dense targets in the computation dtype, the mask of rows that are not ignored, and the result dtype.

    Class targets become one-hot rows; background and ignored rows are all zero.
    """
    dense = targets.is_floating_point()
    dtype = torch.promote_types(inputs.dtype, targets.dtype) if dense else inputs.dtype
    x = inputs.to(torch.promote_types(dtype, torch.float32))
    if dense:
        return x, targets.to(x.dtype), None, dtype
    classes = torch.arange(inputs.shape[-1], device=inputs.device)
    one_hot = (targets.unsqueeze(-1) == classes).to(x.dtype)
    counted = targets != IGNORED
    if weight is not None:
        counted = counted & (weight != 0)
    return x, one_hot, counted.unsqueeze(-1), dtype


def _finish(
    loss: Tensor, weight: Tensor | None, counted: Tensor | None, dtype: torch.dtype, reduction: str
) -> Tensor:
    if weight is not None:
        loss = loss * weight.unsqueeze(-1).to(loss.dtype)
    if counted is not None:
        loss = torch.where(counted, loss, 0.0)
    return loss.to(dtype) if reduction == "none" else reduce(loss, reduction)


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    weight: Tensor | None = None,
) -> Tensor:
    """See :func:`fcos_fast.ops.sigmoid_focal_loss`."""
    x, y, counted, dtype = _prepare(inputs, targets, weight)
    p = torch.sigmoid(x)
    if counted is None:
        cross_entropy = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    else:  # avoids the 0 * inf of the general formula at infinite logits
        cross_entropy = -F.logsigmoid(torch.where(y > 0, x, -x))
    p_wrong = p * (1 - y) + (1 - p) * y
    p_wrong = p_wrong.clamp(
        min=torch.finfo(p_wrong.dtype).tiny
    )  # the slope of p ** gamma at 0 is infinite for gamma < 1
    class_weight = alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else torch.ones_like(y)
    if counted is not None:  # a weight of 0 makes even an infinite loss 0
        finite = cross_entropy.clamp(max=torch.finfo(x.dtype).max)
        cross_entropy = torch.where(class_weight == 0, finite, cross_entropy)
    loss = cross_entropy * p_wrong**gamma * class_weight
    return _finish(loss, weight, counted, dtype, reduction)


def sigmoid_focal_loss_star(
    inputs: Tensor,
    targets: Tensor,
    gamma: float = 2,
    beta: float = 1,
    reduction: str = "none",
    weight: Tensor | None = None,
) -> Tensor:
    """See :func:`fcos_fast.ops.sigmoid_focal_loss_star`."""
    x, y, counted, dtype = _prepare(inputs, targets, weight)
    x_t = x * (2 * y - 1)
    return _finish(-F.logsigmoid(gamma * x_t + beta) / gamma, weight, counted, dtype, reduction)
