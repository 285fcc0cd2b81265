"""The three losses of FCOS over flattened levels, as in the published implementations."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fcos_fast.assignment import BACKGROUND, Targets
from fcos_fast.reference.box_loss import box_loss as box_losses
from fcos_fast.reference.focal_loss import sigmoid_focal_loss


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """Flatten maps (B, K, H, W) of all levels to (B, P, K), in the order of ``Targets``; at least float32."""
    flat = torch.cat([x.flatten(2) for x in maps], dim=2).mT
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def _divisors(targets: Targets, weighted: bool) -> Tensor:
    num_positive = targets.num_positive.clamp(min=1)
    box = targets.centerness_sum.clamp(min=1e-6) if weighted else num_positive
    return torch.stack((num_positive, box, num_positive))[:, None]  # (3, 1)


def detection_loss(
    cls_logits: Sequence[Tensor],
    box_regression: Sequence[Tensor],
    centerness: Sequence[Tensor],
    targets: Targets,
    *,
    units: Sequence[float],
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_loss: str = "giou",
    box_loss_smooth: float = 0.0,
    box_loss_eps: float = 1e-7,
    centerness_weighted: bool = True,
    quality: str = "centerness",
    normalizers: Tensor | None = None,
) -> dict[str, Tensor]:
    """See :func:`fcos_fast.ops.detection_loss`."""
    counts = [logits.shape[-2] * logits.shape[-1] for logits in cls_logits]
    logits, regression = _flatten(cls_logits), _flatten(box_regression)  # (B, P, C), (B, P, 4)
    quality_logits = _flatten(centerness).squeeze(-1)  # (B, P)
    unit = torch.cat([logits.new_full((n,), float(u)) for n, u in zip(counts, units, strict=True)])  # (P,)

    positive = targets.labels > BACKGROUND  # (B, P)
    cls_loss = sigmoid_focal_loss(logits, targets.labels.long(), alpha, gamma).sum((1, 2))  # (B,)

    # Replace non-positive locations by 1, so that even non-finite outputs get a gradient of 0.
    predicted = torch.where(positive[..., None], regression, 1.0)
    target = torch.where(positive[..., None], targets.ltrb / unit[:, None], 1.0)
    losses_of = partial(box_losses, box_format="ltrb", smooth=box_loss_smooth, eps=box_loss_eps)
    weight = positive * (targets.centerness if centerness_weighted else 1.0)
    box = (losses_of(predicted, target, box_loss) * weight).sum(1)  # (B,)

    quality_target = targets.centerness.to(quality_logits.dtype)
    if quality == "iou":
        quality_target = 1 - losses_of(predicted, target, "linear_iou").detach().to(quality_logits.dtype)
    quality_logits = torch.where(positive, quality_logits, 0.0)
    entropy = F.binary_cross_entropy_with_logits(quality_logits, quality_target, reduction="none")
    quality_loss = (entropy * positive).sum(1)  # (B,)

    divisors = _divisors(targets, centerness_weighted) if normalizers is None else normalizers
    divisors = divisors.reshape(3, -1).expand(3, len(cls_loss)).to(cls_loss.dtype)  # (3, B)
    parts = (cls_loss, box, quality_loss)
    losses = [(part / divisor).sum() for part, divisor in zip(parts, divisors, strict=True)]
    return dict(zip(("classification", "bbox_regression", "bbox_ctrness"), losses, strict=True))
