"""RetinaNet's matching of anchors to boxes by IoU (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import AnchorMatches, GroundTruth
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentTypeError, ArgumentValueError
from fcos_fast.ops._register import register_fake

LOW_QUALITY = ("none", "own_match", "last_claim")


def match_anchors(
    anchors: Tensor,
    gt: GroundTruth,
    *,
    high_threshold: float = 0.5,
    low_threshold: float = 0.4,
    low_quality: str = "own_match",
    min_pos_iou: float = 0.0,
) -> AnchorMatches:
    """Match anchors to the boxes of each image in the batch, without materializing the IoU matrix.

    With the defaults, equivalent to torchvision's ``Matcher(high_threshold, low_threshold, True)`` on its ``box_iou``,
    with identical comparisons; with ``low_quality="last_claim"``, to mmdetection's ``MaxIoUAssigner``. An anchor is
    matched to the box with which it has the greatest IoU (the first of equals).

    Args:
        anchors: (A, 4) float32, xyxy in pixels, the same for all images.
        gt: packed boxes (in pixels) and labels of the batch.
        high_threshold: an anchor is positive if its IoU is at least this.
        low_threshold: an anchor is background if its IoU is below this, and ignored between the two thresholds.
        low_quality: a box claims the anchors whose IoU with it is the greatest that it has with any anchor, whatever
            the thresholds. A claimed anchor is matched to the box with which it has the greatest IoU
            (``"own_match"``, torchvision and detectron2) or to the last box that claims it (``"last_claim"``,
            mmdetection). ``"none"``: boxes claim no anchors. If a box overlaps no anchor, its greatest IoU is 0, and it
            claims every anchor, as in those projects.
        min_pos_iou: in [0, 1]; a box claims anchors only if its greatest IoU is at least this.

    Returns:
        Labels (as :func:`sigmoid_focal_loss` accepts them), matched boxes and the number of positives; see
        :class:`~fcos_fast.assignment.AnchorMatches`. Images without boxes are all background.

    Raises:
        TypeError: wrong dtype or number of dimensions.
        ValueError: wrong shape or device, low_threshold > high_threshold, an unknown low_quality, a box with x2 <= x1
            or y2 <= y1, a NaN, or a negative label. Values are only checked on the CPU or with ``FCOS_FAST_CHECK=1``;
            otherwise such a box is skipped (in torchvision, every anchor that overlaps no box would become positive).
    """
    _check(anchors, gt, high_threshold, low_threshold)
    _checks.check_choices("match_anchors", low_quality=(low_quality, LOW_QUALITY))
    _checks.check_unit_interval("match_anchors", min_pos_iou=min_pos_iou)
    if not use_native(anchors):
        return reference.match_anchors(
            anchors,
            gt,
            high_threshold=high_threshold,
            low_threshold=low_threshold,
            low_quality=low_quality,
            min_pos_iou=min_pos_iou,
        )
    return AnchorMatches(
        *torch.ops.fcos_fast.match_anchors(
            anchors,
            gt.boxes,
            gt.labels,
            gt.starts,
            float(high_threshold),
            float(low_threshold),
            low_quality,
            float(min_pos_iou),
        )
    )


def _check(anchors: Tensor, gt: GroundTruth, high_threshold: float, low_threshold: float) -> None:
    op = "match_anchors"
    _checks.check_same_device(op, anchors=anchors, boxes=gt.boxes)
    if anchors.dtype != torch.float32 or anchors.ndim != 2 or anchors.shape[1] != 4:
        raise ArgumentTypeError(
            f"{op}: anchors has dtype {anchors.dtype} and shape {tuple(anchors.shape)}; expected float32 (A, 4)"
        )
    if not low_threshold <= high_threshold:
        raise ArgumentValueError(
            f"{op}: low_threshold={low_threshold} and high_threshold={high_threshold}; expected low <= high"
        )
    _checks.check_ground_truth(op, gt)


if cpu_error is None:

    @register_fake("match_anchors")
    def _fake_match_anchors(
        anchors: Tensor, boxes: Tensor, labels: Tensor, starts: Tensor, *rule: object
    ) -> tuple[Tensor, ...]:
        shape = (starts.shape[0] - 1, anchors.shape[0])
        return (
            anchors.new_empty(shape, dtype=torch.int32),
            anchors.new_empty(shape, dtype=torch.int32),
            anchors.new_empty(()),
        )
