"""RetinaNet's matching of anchors and boxes by IoU (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import AnchorMatches, GroundTruth
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentTypeError, ArgumentValueError
from fcos_fast.ops._register import register_fake


def match_anchors(
    anchors: Tensor,
    gt: GroundTruth,
    *,
    high_threshold: float = 0.5,
    low_threshold: float = 0.4,
    allow_low_quality: bool = True,
) -> AnchorMatches:
    """Match the anchors with the boxes of each image of the batch; the matrix of their IoUs is never in memory.

    The same matches as torchvision's ``Matcher(high_threshold, low_threshold, allow_low_quality)`` makes of its
    ``box_iou``, to the last bit of every comparison. An anchor takes the box of its greatest IoU, the first of equals.

    Args:
        anchors: (A, 4) float32, xyxy in pixels, the same for all images.
        gt: packed boxes in pixels, labels, and where each image begins.
        high_threshold: an anchor with this IoU or more is positive.
        low_threshold: one with less than this is background; between the two it is ignored.
        allow_low_quality: an anchor whose IoU with a box equals the greatest of this box with any anchor is positive
            too, whatever the IoU is. It takes the box of its own greatest IoU. A box that overlaps no anchor at all has
            the greatest IoU 0, with every anchor that does not overlap it: all of these become positive, as in
            torchvision.

    Returns:
        Labels, which :func:`sigmoid_focal_loss` takes, matched boxes and the number of positives; see
        :class:`~fcos_fast.assignment.AnchorMatches`. All background where an image has no box.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device, thresholds in the wrong order; on the host, and under
            FCOS_FAST_CHECK=1 anywhere, also a box with x2 <= x1 or y2 <= y1, a NaN, or a negative label. Unchecked,
            such a box takes part in nothing (torchvision would make every anchor that overlaps no box positive).
    """
    _check(anchors, gt, high_threshold, low_threshold)
    if not use_native(anchors):
        return reference.match_anchors(
            anchors,
            gt,
            high_threshold=high_threshold,
            low_threshold=low_threshold,
            allow_low_quality=allow_low_quality,
        )
    return AnchorMatches(
        *torch.ops.fcos_fast.match_anchors(
            anchors,
            gt.boxes,
            gt.labels,
            gt.starts,
            float(high_threshold),
            float(low_threshold),
            bool(allow_low_quality),
        )
    )


def _check(anchors: Tensor, gt: GroundTruth, high_threshold: float, low_threshold: float) -> None:
    op = "match_anchors"
    _checks.check_same_device(op, anchors=anchors, boxes=gt.boxes)
    if anchors.dtype != torch.float32 or anchors.ndim != 2 or anchors.shape[1] != 4:
        raise ArgumentTypeError(
            f"{op}: anchors are {anchors.dtype} of shape {tuple(anchors.shape)}; expected float32 (A, 4)"
        )
    if not low_threshold <= high_threshold:
        raise ArgumentValueError(
            f"{op}: low_threshold={low_threshold} and high_threshold={high_threshold}; expected low <= high"
        )
    _checks.check_ground_truth(op, gt)


if cpu_error is None:

    @register_fake("match_anchors")
    def _fake_match_anchors(anchors, boxes, labels, starts, high_threshold, low_threshold, allow_low_quality):
        shape = (starts.shape[0] - 1, anchors.shape[0])
        integers = {"dtype": torch.int32}
        return (
            anchors.new_empty(shape, **integers),
            anchors.new_empty(shape, **integers),
            anchors.new_empty(()),
        )
