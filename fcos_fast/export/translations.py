"""The project's operators as graphs of standard ONNX operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from onnxscript import opset18

OPSET = 18
"""Version of the operators, the one in which the exporter writes."""

OPSET_OF_DEFORM_CONV = 19

op: Any = opset18  # its type hints are for scripts, these functions are traced


def translations(num_classes: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operator -> its translation, as ``torch.onnx.export`` takes it, for a detector of ``num_classes``."""

    def nms_padded(
        boxes: Any, scores: Any, labels: Any | None, iou_threshold: float, max_detections: int
    ) -> tuple[Any, Any]:
        return _nms_padded(boxes, scores, labels, iou_threshold, max_detections, num_classes)

    return {
        torch.ops.fcos_fast.group_norm_relu.default: _group_norm_relu,
        torch.ops.fcos_fast.nms_padded.default: nms_padded,
    }


def _group_norm_relu(
    x: Any, weight: Any, bias: Any, num_groups: int, eps: float = 1e-5
) -> tuple[Any, Any, Any]:
    """The operator also returns the mean and 1 / deviation of each group, which only training reads."""
    ones, zeros = (_constant(np.full(num_groups, value, np.float32)) for value in (1, 0))
    grouped = op.Reshape(x, _constant([0, num_groups, -1]))  # (B, groups, ...)
    normal = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=eps), op.Shape(x))
    channel_first = _constant([1, -1, 1, 1])
    scaled = op.Mul(normal, op.Reshape(weight, channel_first))
    shifted = op.Add(scaled, op.Reshape(bias, channel_first))
    unused = _constant(np.zeros(1, np.float32))
    return op.Relu(shifted), unused, unused


def _nms_padded(
    boxes: Any, scores: Any, labels: Any | None, iou_threshold: float, max_detections: int, num_classes: int
) -> tuple[Any, Any]:
    """Suppression within each class; then the best of all classes, of equal scores the first."""
    none = _constant(np.float32(-1))  # the score of what is no candidate, below any threshold
    scores = op.Max(scores, none)  # (B, N)
    of_classes = op.Unsqueeze(scores, _constant([1]))  # (B, 1, N)
    if labels is not None:
        classes = _constant(np.arange(num_classes)[None, :, None])
        of_classes = op.Where(op.Equal(op.Unsqueeze(labels, _constant([1])), classes), of_classes, none)
    # xyxy instead of yxyx: the IoU is the same
    kept = op.NonMaxSuppression(
        boxes,
        of_classes,  # (B, C, N)
        _constant([max_detections]),
        _constant(np.array([rounded_down(iou_threshold)], np.float32)),
        _constant(np.array([-0.5], np.float32)),
    )  # (M, 3): image, class, box
    image_and_box = op.Gather(kept, _constant([0, 2]), axis=1)  # (M, 2)
    nothing = op.Expand(none, op.Shape(scores))
    kept_scores = op.ScatterND(nothing, image_and_box, op.GatherND(scores, image_and_box))  # (B, N)
    batch = op.Shape(scores, start=0, end=1)
    padding = op.Expand(none, op.Concat(batch, _constant([max_detections]), axis=0))  # (B, D)
    best, indices = op.TopK(op.Concat(kept_scores, padding, axis=1), _constant([max_detections]))
    is_box = op.Greater(best, _constant(np.float32(-0.5)))
    counts = op.ReduceSum(op.Cast(is_box, to=7), _constant([1]), keepdims=0)  # 7: int64
    return op.Where(is_box, indices, _constant(np.int64(-1))), counts


def rounded_down(threshold: float) -> float:
    """The largest float32 that is at most ``threshold``.

    The IoU is a float32 number, which the operator compares with the threshold in float64, ONNX in float32. It is above
    one of the two thresholds exactly if it is above the other.
    """
    nearest = np.float32(threshold)
    return float(np.nextafter(nearest, np.float32(-np.inf)) if float(nearest) > threshold else nearest)


def _constant(values: Any) -> Any:
    return op.Constant(value=numpy_helper.from_array(np.asarray(values)))
