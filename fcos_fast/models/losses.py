"""The three losses of FCOS, from the head's outputs per level and the assigned targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fcos_fast import ops
from fcos_fast.assignment import BACKGROUND, IGNORED, Level, Targets


def ignore_outside(targets: Targets, levels: Sequence[Level], sizes: Tensor) -> Targets:
    """Take the locations that lie outside their image, in what the batch is padded with, out of every loss.

    Args:
        targets: of B images.
        levels: that the targets were assigned on.
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
    centerness_weighted: bool = True,
) -> dict[str, Tensor]:
    """Classification, box and centerness loss of a batch.

    Without a positive location the losses are finite and keep their graph; nothing here waits for the device.

    Args:
        cls_logits, box_regression, centerness: per level (B, C, H, W), (B, 4, H, W), (B, 1, H, W), as
            :class:`fcos_fast.models.HeadOutputs` describes them.
        targets: for all levels, P = sum of H * W.
        units: pixels per unit of ``box_regression``, per level.
        alpha, gamma: of the focal loss.
        box_loss, box_loss_smooth: ``kind`` and ``smooth`` of :func:`fcos_fast.ops.box_loss`.
        centerness_weighted: weight each box by its target centerness and divide by their sum, as the paper's
            authors do; otherwise divide by the number of positive locations, as torchvision does.

    Returns:
        ``{"classification", "bbox_regression", "bbox_ctrness"}``, float32 scalars.
    """
    counts = [logits.shape[-2] * logits.shape[-1] for logits in cls_logits]
    num_positive = targets.num_positive.clamp(min=1)

    classification = sum(
        ops.sigmoid_focal_loss(
            logits.permute(0, 2, 3, 1),  # (B, H, W, C), a view
            labels.unflatten(1, logits.shape[-2:]),
            alpha,
            gamma,
            reduction="sum",
        ).float()
        for logits, labels in zip(cls_logits, targets.labels.split(counts, dim=1), strict=True)
    )

    positive = targets.labels > BACKGROUND  # (B, P)
    weight = positive.float()
    box_weight = weight * targets.centerness if centerness_weighted else weight
    box_total = targets.centerness_sum.clamp(min=1e-6) if centerness_weighted else num_positive
    unit = torch.cat([weight.new_full((n,), float(u)) for n, u in zip(counts, units, strict=True)])  # (P,)
    # 1 in place of what no loss counts: its gradient is then 0, whatever the network says there.
    predicted = torch.where(positive[..., None], flatten_levels(box_regression).float(), 1.0)  # (B, P, 4)
    wanted = torch.where(positive[..., None], targets.ltrb / unit[:, None], 1.0)
    boxes = ops.box_loss(predicted, wanted, box_loss, box_format="ltrb", smooth=box_loss_smooth)
    quality = F.binary_cross_entropy_with_logits(
        flatten_levels(centerness).squeeze(-1).float(), targets.centerness, weight, reduction="sum"
    )
    return {
        "classification": classification / num_positive,
        "bbox_regression": (boxes * box_weight).sum() / box_total,
        "bbox_ctrness": quality / num_positive,
    }


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Per-level maps (B, K, H, W) to (B, P, K), in the order of the locations in ``Targets``."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).mT
