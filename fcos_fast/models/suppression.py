"""From the candidates of a batch to its detections."""

from __future__ import annotations

import torch
from torch import Tensor

from fcos_fast import ops
from fcos_fast.boxes import has_area
from fcos_fast.detections import BatchDetections


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    sizes: Tensor | None,
    *,
    iou_threshold: float,
    max_detections: int,
    inclusive_boxes: bool = False,
    drop_empty: bool = False,
    clip: str = "before_nms",
    class_agnostic: bool = False,
) -> BatchDetections:
    """Clip candidates to their image and suppress them, without waiting for the device.

    Args:
        boxes: (B, N, 4) xyxy in pixels.
        scores: (B, N); -inf for what is no candidate.
        labels: (B, N) int64.
        sizes: (B, 2); height and width of each image, on the device. None: boxes are not clipped.
        iou_threshold: IoU above which NMS drops the box with the lower score.
        max_detections: detections per image.
        inclusive_boxes: whether x2 and y2 name the last pixel inside.
        drop_empty: drop boxes without width or height before NMS.
        clip: clip boxes ``"before_nms"`` or ``"after_nms"``.
        class_agnostic: boxes also suppress boxes of other classes.
    """
    # Sides of inclusive boxes are longer by 1 than the difference of their corners.
    pixel = 1 if inclusive_boxes else 0
    clipped = boxes
    if sizes is not None:
        limits = (sizes - pixel).to(boxes.dtype).flip(1).repeat(1, 2)[:, None]  # (B, 1, 4)
        clipped = boxes.clamp(min=0).minimum(limits)
    compared = clipped if clip == "before_nms" else boxes
    compared = torch.cat((compared[..., :2], compared[..., 2:] + pixel), dim=-1)
    if drop_empty:
        scores = torch.where(has_area(compared), scores, -torch.inf)
    groups = None if class_agnostic else labels
    indices, counts = ops.nms_padded(compared, scores, groups, iou_threshold, max_detections)
    is_padding = indices < 0
    rows = indices.clamp(min=0)
    return BatchDetections(
        clipped.gather(1, rows[..., None].expand(-1, -1, 4)).masked_fill(is_padding[..., None], 0),
        scores.gather(1, rows).masked_fill(is_padding, 0),
        labels.gather(1, rows).masked_fill(is_padding, -1),
        counts,
    )
