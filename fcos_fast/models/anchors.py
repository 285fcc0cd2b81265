"""The anchors of RetinaNet, and boxes encoded relative to them (Girshick et al., "Rich feature hierarchies", 2014)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.assignment import Level
from fcos_fast.models.config import RetinaNetConfig
from fcos_fast.models.sizes import Size

MAX_LOG_RATIO = math.log(1000 / 16)
"""Decoded boxes are at most ``exp`` of this times as wide and high as their anchor, as in Detectron."""


class Anchors(nn.Module):
    """The anchors of an image."""

    cells: Tensor  # (L, per_location, 4), around (0, 0)

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__()
        self.strides = config.strides
        self.on_corners = config.anchor_rule == "torchvision"
        self.per_location = len(config.anchor_scales) * len(config.anchor_shapes)
        # A buffer moves with the model to its device; not persistent: the values are in the configuration.
        cells = torch.tensor([_cell(config, stride) for stride in config.strides])
        self.register_buffer("cells", cells, persistent=False)

    def forward(self, size: Size, feature_sizes: Sequence[Size]) -> list[Tensor]:
        """The anchors of each level, (height * width * per_location, 4) xyxy in pixels, ordered by location.

        Args:
            size: (height, width) of the padded image.
            feature_sizes: (height, width) of each level's feature maps.
        """
        anchors = []
        for (height, width), stride, cell in zip(feature_sizes, self.strides, self.cells, strict=True):
            step = (size[0] // height, size[1] // width) if self.on_corners else (stride, stride)
            offset = (0.0, 0.0) if self.on_corners else (stride / 2, stride / 2)
            level = Level(height, width, stride, step, offset, (0.0, math.inf))
            points = level.points(cell.device).repeat(1, 2)  # (H * W, 4)
            anchors.append((points[:, None] + cell).flatten(0, 1))
        return anchors


def _cell(config: RetinaNetConfig, stride: int) -> list[list[float]]:
    """The anchors of one location, around (0, 0)."""
    sides = [config.anchor_size * stride * scale for scale in config.anchor_scales]
    if config.anchor_rule == "torchvision":
        pairs = [(float(int(side)), shape) for shape in config.anchor_shapes for side in sides]
    else:
        pairs = [(side, shape) for side in sides for shape in config.anchor_shapes]
    halves = [(side * width / 2, side * height / 2) for side, (width, height) in pairs]
    if config.anchor_rule == "torchvision":
        halves = [(float(round(x)), float(round(y))) for x, y in halves]
    return [[-x, -y, x, y] for x, y in halves]


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(dx, dy, dw, dh) of xyxy ``boxes`` (..., 4): shift of the center in anchor sides, log ratios of the sides."""
    center, sides = _center_and_sides(boxes)
    anchor_center, anchor_sides = _center_and_sides(anchors)
    return torch.cat(((center - anchor_center) / anchor_sides, (sides / anchor_sides).log()), dim=-1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Inverse of :func:`encode_boxes`; the log ratios are clamped to :data:`MAX_LOG_RATIO`."""
    anchor_center, anchor_sides = _center_and_sides(anchors)
    center = deltas[..., :2] * anchor_sides + anchor_center
    half = 0.5 * (deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() * anchor_sides)
    return torch.cat((center - half, center + half), dim=-1)


def matched_box_loss(
    deltas: Tensor,
    matched: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """(B,) the box loss of each image summed over its matched anchors, in float32 (float64 for float64 deltas).

    Outputs of unmatched anchors are not used: an infinity there changes neither loss nor gradient. On a CPU, only
    matched anchors are computed. On other devices and while tracing, their number is unknown to the host; instead of
    waiting for the device, all anchors are computed, the unmatched ones with zero deltas and themselves as targets.

    Args:
        deltas: (B, A, 4), outputs of the network, as :func:`encode_boxes` encodes.
        matched: (B, A) int32, row of ``boxes``; negative for unmatched anchors.
        anchors: (A, 4) float32 xyxy in pixels.
        boxes: (M, 4) float32 xyxy in pixels.
        loss: function of deltas, anchors and boxes, (N, 4) each, that returns (N,).
    """
    dtype = torch.promote_types(deltas.dtype, anchors.dtype)  # in 16 bits, boxes would move by pixels
    positive = matched >= 0
    if deltas.device.type == "cpu" and not torch.compiler.is_compiling():
        image, anchor = positive.nonzero(as_tuple=True)
        pairs = loss(deltas[image, anchor].to(dtype), anchors[anchor], boxes[matched[image, anchor]])
        return torch.stack([of_image.sum() for of_image in pairs.split(positive.sum(dim=1).tolist())])
    # Replaced before the loss, not masked after it: the gradient of a masked infinity is 0 * inf.
    deltas = torch.where(positive[..., None], deltas, 0.0).to(dtype)
    boxes = F.pad(boxes, (0, 0, 0, 1))  # at least one row to index
    boxes = torch.where(positive[..., None], boxes[matched.clamp(min=0)], anchors)
    pairs = loss(*(x.flatten(0, 1) for x in (deltas, anchors.expand_as(boxes), boxes)))
    return torch.where(positive, pairs.view(positive.shape), 0.0).sum(dim=1)


def _center_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides
