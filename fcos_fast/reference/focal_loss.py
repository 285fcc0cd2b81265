"""Sigmoid focal loss and its second form (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fcos_fast.assignment import IGNORED
from fcos_fast.reference.reduction import reduce


def _dense_targets(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
    """Expand class targets of shape ``inputs.shape[:-1]`` to one-hot rows; also the mask of rows that count."""
    if targets.is_floating_point():
        return targets.to(inputs.dtype), None
    classes = torch.arange(inputs.shape[-1], device=inputs.device)
    one_hot = (targets.unsqueeze(-1) == classes).to(inputs.dtype)  # -1 and -2 equal no class
    return one_hot, (targets != IGNORED).unsqueeze(-1)


def _finish(loss: Tensor, counted: Tensor | None, dtype: torch.dtype, reduction: str) -> Tensor:
    if counted is not None:
        loss = torch.where(counted, loss, 0.0)
    return reduce(loss, reduction).to(dtype)


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """See :func:`fcos_fast.ops.sigmoid_focal_loss`."""
    x = inputs if inputs.dtype == torch.float64 else inputs.float()
    y, counted = _dense_targets(x, targets)
    p = torch.sigmoid(x)
    cross_entropy = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    p_wrong = p * (1 - y) + (1 - p) * y
    loss = cross_entropy * p_wrong**gamma
    if alpha >= 0:
        loss = loss * (alpha * y + (1 - alpha) * (1 - y))
    return _finish(loss, counted, inputs.dtype, reduction)


def sigmoid_focal_loss_star(
    inputs: Tensor, targets: Tensor, gamma: float = 2, beta: float = 1, reduction: str = "none"
) -> Tensor:
    """See :func:`fcos_fast.ops.sigmoid_focal_loss_star`."""
    x = inputs if inputs.dtype == torch.float64 else inputs.float()
    y, counted = _dense_targets(x, targets)
    x_t = x * (2 * y - 1)
    return _finish(-F.logsigmoid(gamma * x_t + beta) / gamma, counted, inputs.dtype, reduction)
