"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fcos_fast import ops
from fcos_fast.assignment import GroundTruth
from fcos_fast.detections import BatchDetections
from fcos_fast.models.anchors import Anchors, decode_boxes, encode_boxes, matched_box_loss
from fcos_fast.models.class_weights import weighted_sum
from fcos_fast.models.config import RetinaNetConfig, configure
from fcos_fast.models.detector import Detector
from fcos_fast.models.retinanet_head import RetinaNetHead, RetinaNetOutputs
from fcos_fast.models.retinanet_presets import RETINANET_PRESETS
from fcos_fast.models.sizes import Size
from fcos_fast.models.suppression import suppress
from fcos_fast.models.transform import ImageBatch


@dataclass(frozen=True)
class AnchorTargets:
    """The targets of the A anchors of all levels, for B images.

    Attributes:
        anchors: (A, 4) xyxy in pixels.
        labels: (B, A) int32; class 0..C-1, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).
        matched: (B, A) int32; row of ``boxes``, negative for unmatched anchors.
        boxes: (M, 4) float32, the boxes of the whole batch.
        totals: float32 scalar on the device; number of matched anchors.
    """

    anchors: Tensor
    labels: Tensor
    matched: Tensor
    boxes: Tensor
    totals: Tensor

    def part(self, images: slice) -> AnchorTargets:
        """The targets of some of the images, with the totals of all."""
        return replace(self, labels=self.labels[images], matched=self.matched[images])


class RetinaNet(Detector):
    """RetinaNet, with torchvision's calling convention and parameter names.

    See :class:`Detector` for inputs and outputs; the losses are ``{"classification", "bbox_regression"}``.
    """

    config: RetinaNetConfig
    LOSSES = ("classification", "bbox_regression")

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__(config)
        self.anchors = Anchors(config)
        self.head = RetinaNetHead(
            config.fpn_channels,
            self.anchors.per_location,
            config.num_classes,
            config.head_channels,
            config.head_convs,
            config.head_norm,
            config.prior,
        )

    def assign(self, batch: ImageBatch, gt: GroundTruth) -> AnchorTargets:
        """The targets of all anchors of a batch."""
        config = self.config
        anchors = torch.cat(self._anchors(batch.padded_size)).float()
        matches = ops.match_anchors(
            anchors,
            gt,
            high_threshold=config.match_threshold,
            low_threshold=config.background_threshold,
            low_quality="own_match" if config.allow_low_quality else "none",
        )
        return AnchorTargets(anchors, matches.labels, matches.matched, gt.boxes, matches.num_positive)

    def losses(
        self, images: Tensor, targets: AnchorTargets, reduction: dist.Work | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`Detector.losses`."""
        cls_logits, box_regression = self.network(images)
        if reduction is not None:
            reduction.wait()
        deltas = torch.cat([by_anchor(x, 4) for x in box_regression], dim=1)  # (B, A, 4)
        if self.config.normalizer == "image":
            normalizers = (targets.labels >= 0).sum(dim=1).clamp(min=1) * len(deltas)  # (B,)
        else:
            # the mean of the losses over the processes then equals the loss of a single process
            processes = dist.get_world_size() if self._shares_totals() else 1
            normalizers = targets.totals.clamp(min=1) / processes
        boxes = matched_box_loss(
            deltas, targets.matched, targets.anchors, targets.boxes, self._box_loss
        )  # (B,)
        return {
            "classification": (self._classification_loss(cls_logits, targets.labels) / normalizers).sum(),
            "bbox_regression": (boxes / normalizers).sum(),
        }

    def _classification_loss(self, cls_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The sum over the anchors of the batch, or (B,) of each image if the normalizers are per image."""
        logits = [by_anchor(x, self.config.num_classes) for x in cls_logits]  # views of channels-last maps
        losses = []  # of each level
        for level, of_level in zip(logits, labels.split([x.shape[1] for x in logits], dim=1), strict=True):
            if self.config.normalizer == "positives":
                losses.append(self._focal_loss(level, of_level))
            else:
                images = zip(level, of_level, strict=True)
                losses.append(torch.stack([self._focal_loss(*image) for image in images]))
        return torch.stack(losses).sum(dim=0)

    def _focal_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the loss of logits (..., C) with labels (...)."""
        if self.class_weights is not None:
            loss = partial(self._unweighted_loss, reduction="none")
            return weighted_sum(loss, logits, labels, self.class_weights).sum()
        return self._unweighted_loss(logits, labels, "sum")

    def _unweighted_loss(self, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        config = self.config
        if config.classification_loss == "focal_star":
            return ops.sigmoid_focal_loss_star(
                logits, labels, config.focal_gamma, config.focal_beta, reduction
            )
        return ops.sigmoid_focal_loss(logits, labels, config.focal_alpha, config.focal_gamma, reduction)

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(N,) of encoded boxes (N, 4), their anchors and their target boxes."""
        kind = self.config.box_loss
        if kind not in ("l1", "smooth_l1"):
            return ops.box_loss(decode_boxes(deltas, anchors), boxes, kind)
        expected = encode_boxes(boxes, anchors)
        beta = self.config.smooth_l1_beta if kind == "smooth_l1" else 0.0
        return F.smooth_l1_loss(deltas, expected, reduction="none", beta=beta).sum(dim=-1)

    def _shares_totals(self) -> bool:
        return self.config.normalizer == "positives" and super()._shares_totals()

    def postprocess(self, outputs: RetinaNetOutputs, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """As :meth:`Detector.postprocess`."""
        config = self.config
        cls_logits, box_regression = outputs
        _, sizes = batch.tensors()
        return postprocess_anchors(
            [by_anchor(x, config.num_classes) for x in cls_logits],
            [by_anchor(x, 4) for x in box_regression],
            self._anchors(batch.padded_size),
            sizes,
            score_threshold=config.score_threshold,
            topk_candidates=config.topk_candidates,
            iou_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            inclusive_boxes=config.inclusive_boxes,
            drop_empty=config.drop_empty == "before_nms",
        ).split()

    def _anchors(self, size: Size) -> list[Tensor]:
        return self.anchors(size, self.feature_sizes(size))


def by_anchor(maps: Tensor, numbers: int) -> Tensor:
    """(B, n * numbers, H, W) to (B, H * W * n, numbers)."""
    # len(maps) would fix the batch size in torch.export
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, numbers)


def sum_focal_loss(maps: Tensor, labels: Tensor, num_classes: int, alpha: float, gamma: float) -> Tensor:
    """The sum of the focal loss of a level, for logits (B, n * C, H, W) as convolutions write them.

    Args:
        maps: logits, in any memory format; contiguous ones are read without a copy.
        labels: (B, H * W * n) class labels of the anchors, as :func:`fcos_fast.ops.sigmoid_focal_loss` accepts them.
        num_classes: number of classes C.
        alpha: weight of the positives.
        gamma: focusing exponent.
    """
    batch, channels, height, width = maps.shape
    per_location = channels // num_classes
    logits = maps.reshape(batch, per_location, num_classes, height * width).transpose(2, 3)
    classes = labels.view(batch, height * width, per_location).transpose(1, 2)
    return ops.sigmoid_focal_loss(logits, classes, alpha, gamma, "sum")


def postprocess_anchors(
    cls_logits: Sequence[Tensor],
    box_regression: Sequence[Tensor],
    anchors: Sequence[Tensor],
    sizes: Tensor,
    *,
    score_threshold: float,
    topk_candidates: int,
    iou_threshold: float,
    max_detections: int,
    inclusive_boxes: bool = False,
    drop_empty: bool = False,
    clip: str = "before_nms",
    decode: Callable[[Tensor, Tensor], Tensor] = decode_boxes,
) -> BatchDetections:
    """Detections of an anchor-based head: torchvision's rule, without waiting for the device.

    Args:
        cls_logits: (B, A, C) of each level.
        box_regression: (B, A, 4) of each level.
        anchors: (A, 4) of each level, xyxy in pixels.
        sizes: (B, 2); height and width of each image, on the device.
        score_threshold: detections score above it.
        topk_candidates: candidates per level that go to NMS.
        iou_threshold: IoU above which NMS drops the box with the lower score.
        max_detections: detections per image.
        inclusive_boxes: whether x2 and y2 name the last pixel inside.
        drop_empty: drop boxes without width or height before NMS.
        clip: clip boxes to the image ``"before_nms"`` or ``"after_nms"``.
        decode: box regression (..., 4) and anchors to boxes.
    """
    levels = zip(cls_logits, box_regression, anchors, strict=True)
    candidates = [_candidates(*level, score_threshold, topk_candidates, decode) for level in levels]
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
    return suppress(
        boxes,
        scores,
        labels,
        sizes,
        iou_threshold=iou_threshold,
        max_detections=max_detections,
        inclusive_boxes=inclusive_boxes,
        drop_empty=drop_empty,
        clip=clip,
    )


def _candidates(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    score_threshold: float,
    topk_candidates: int,
    decode: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, K, 4), scores and labels (B, K) of the best of a level; the score is -inf below the threshold."""
    classes = logits.shape[2]
    # The best pairs of anchor and class are among the anchors with the best class, so most logits are read once.
    rows = logits.amax(dim=2).topk(torch.sym_min(topk_candidates, anchors.shape[0])).indices  # (B, R)
    logits = logits.gather(1, rows[..., None].expand(-1, -1, classes)).flatten(1)  # (B, R * C)
    logits, pairs = logits.topk(torch.sym_min(topk_candidates, logits.shape[1]))  # (B, K)
    rows, labels = rows.gather(1, pairs // classes), pairs % classes
    scores = logits.to(anchors.dtype).sigmoid()
    scores = torch.where(scores > score_threshold, scores, -torch.inf)
    deltas = deltas.gather(1, rows[..., None].expand(-1, -1, 4))
    return decode(deltas.to(anchors.dtype), anchors[rows]), scores, labels


def retinanet(
    backbone: str = "resnet50",
    num_classes: int | None = None,
    preset: str = "retinanet",
    **overrides: Any,
) -> RetinaNet:
    """Build a RetinaNet with random weights.

    Args:
        backbone: a name of ``fcos_fast.models.BACKBONES``.
        num_classes: number of classes C; labels are 0..C-1. None: the preset's.
        preset: a name of ``fcos_fast.models.retinanet_presets.RETINANET_PRESETS``.
        **overrides: fields of :class:`RetinaNetConfig` that differ from the preset.

    Raises:
        ValueError: unknown preset, backbone or field, with the nearest names; invalid value.

    Example:
        >>> model = retinanet("resnet18", num_classes=3, min_size=240, max_size=320)
        >>> losses = model([torch.rand(3, 240, 320)], [{"boxes": boxes, "labels": labels}])
    """
    return RetinaNet(configure(RETINANET_PRESETS, preset, backbone, num_classes, overrides))
