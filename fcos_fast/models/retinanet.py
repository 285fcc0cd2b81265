"""RetinaNet (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fcos_fast import ops
from fcos_fast.assignment import GroundTruth
from fcos_fast.detections import Detections
from fcos_fast.models.anchors import Anchors, decode_boxes, encode_boxes, matched_box_loss
from fcos_fast.models.config import RetinaNetConfig
from fcos_fast.models.detector import Detector
from fcos_fast.models.retinanet_head import RetinaNetHead, RetinaNetOutputs
from fcos_fast.models.retinanet_presets import RETINANET_PRESETS
from fcos_fast.models.transform import ImageBatch, Size, has_area
from fcos_fast.serialize import check_field_names
from fcos_fast.suggest import unknown_name


@dataclass(frozen=True)
class AnchorTargets:
    """What the A anchors of all levels are to predict, for B images.

    Attributes:
        anchors: (A, 4) xyxy in pixels.
        labels: (B, A) int32; class 0..C-1, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).
        matched: (B, A) int32; row of ``boxes``, negative where there is none.
        boxes: (M, 4) float32, those of the whole batch.
        totals: float32 scalar on the device; number of anchors with a box.
    """

    anchors: Tensor
    labels: Tensor
    matched: Tensor
    boxes: Tensor
    totals: Tensor


class RetinaNet(Detector):
    """The detector that ``config`` describes, with torchvision's calling convention and parameter names.

    See :class:`Detector` for what it takes and returns; the losses are ``{"classification", "bbox_regression"}``.
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
            allow_low_quality=config.allow_low_quality,
        )
        return AnchorTargets(anchors, matches.labels, matches.matched, gt.boxes, matches.num_positive)

    def losses(
        self, images: Tensor, targets: AnchorTargets, reduction: dist.Work | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`Detector.losses`."""
        cls_logits, box_regression = self.network(images)
        if reduction is not None:
            reduction.wait()
        deltas = torch.cat([_by_anchor(x, 4) for x in box_regression], dim=1)  # (B, A, 4)
        if self.config.normalizer == "image":
            normalizers = (targets.labels >= 0).sum(dim=1).clamp(min=1) * len(deltas)  # (B,)
        else:
            processes = dist.get_world_size() if self._shares_totals() else 1
            normalizers = (
                targets.totals.clamp(min=1) / processes
            )  # a process's share of what one would divide by
        boxes = matched_box_loss(
            deltas, targets.matched, targets.anchors, targets.boxes, self._box_loss
        )  # (B,)
        return {
            "classification": (self._classification_loss(cls_logits, targets.labels) / normalizers).sum(),
            "bbox_regression": (boxes / normalizers).sum(),
        }

    def _classification_loss(self, cls_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The sum over the anchors: of the batch, or (B,) of its images where these are normalised by themselves."""
        logits = [_by_anchor(x, self.config.num_classes) for x in cls_logits]  # views of channels-last maps
        levels = zip(logits, labels.split([x.shape[1] for x in logits], dim=1), strict=True)
        if self.config.normalizer == "positives":
            return sum(self._focal_loss(*level) for level in levels)
        return sum(
            torch.stack([self._focal_loss(*image) for image in zip(*level, strict=True)]) for level in levels
        )

    def _focal_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the loss of logits (..., C) with labels (...)."""
        config = self.config
        if config.classification_loss == "focal_star":
            return ops.sigmoid_focal_loss_star(logits, labels, config.focal_gamma, config.focal_beta, "sum")
        return ops.sigmoid_focal_loss(logits, labels, config.focal_alpha, config.focal_gamma, "sum")

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(N,) of coded boxes (N, 4), their anchors and the boxes that these are to predict."""
        kind = self.config.box_loss
        if kind not in ("l1", "smooth_l1"):
            return ops.box_loss(decode_boxes(deltas, anchors), boxes, kind)
        expected = encode_boxes(boxes, anchors)
        beta = self.config.smooth_l1_beta if kind == "smooth_l1" else 0.0
        return F.smooth_l1_loss(deltas, expected, reduction="none", beta=beta).sum(dim=-1)

    def _shares_totals(self) -> bool:
        return self.config.normalizer == "positives" and super()._shares_totals()

    def postprocess(self, outputs: RetinaNetOutputs, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """As :meth:`Detector.postprocess`; torchvision's rule, without waiting for the device before the end."""
        config = self.config
        levels = zip(*outputs, self._anchors(batch.padded_size), strict=True)
        candidates = [self._candidates(*level) for level in levels]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
        # Inclusive boxes end at the last pixel; their sides are greater by 1 than the difference of the corners.
        pixel = 1 if config.inclusive_boxes else 0
        limits = (batch.tensors()[1] - pixel).flip(1).repeat(1, 2)[:, None]  # (B, 1, 4)
        boxes = boxes.clamp(min=0).minimum(limits)
        compared = torch.cat((boxes[..., :2], boxes[..., 2:] + pixel), dim=-1)
        if config.drop_empty == "before_nms":
            scores = torch.where(has_area(compared), scores, -torch.inf)
        indices, counts = ops.nms_padded(
            compared,
            scores,
            labels,
            config.nms_threshold,
            config.max_detections,
        )
        beyond = indices < 0
        rows = indices.clamp(min=0)
        return Detections(
            boxes.gather(1, rows[..., None].expand(-1, -1, 4)).masked_fill(beyond[..., None], 0),
            scores.gather(1, rows).masked_fill(beyond, 0),
            labels.gather(1, rows).masked_fill(beyond, -1),
            counts,
        ).split()

    def _candidates(
        self, cls_logits: Tensor, box_regression: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, K, 4), scores and labels (B, K) of a level's best; the score is -inf below the threshold."""
        most, classes = self.config.topk_candidates, self.config.num_classes
        logits = _by_anchor(cls_logits, classes)  # (B, A, C)
        # The best pairs of anchor and class belong to the anchors with the best class, so most logits are read once.
        rows = logits.amax(dim=2).topk(min(most, len(anchors))).indices  # (B, R)
        logits = logits.gather(1, rows[..., None].expand(-1, -1, classes)).flatten(1)  # (B, R * C)
        logits, places = logits.topk(min(most, logits.shape[1]))  # (B, K)
        rows, labels = rows.gather(1, places // classes), places % classes
        scores = logits.to(anchors.dtype).sigmoid()
        scores = torch.where(scores > self.config.score_threshold, scores, -torch.inf)
        deltas = _by_anchor(box_regression, 4).gather(1, rows[..., None].expand(-1, -1, 4))
        return decode_boxes(deltas.to(anchors.dtype), anchors[rows]), scores, labels

    def _anchors(self, size: Size) -> list[Tensor]:
        return self.anchors(size, self.feature_sizes(size))


def _by_anchor(maps: Tensor, numbers: int) -> Tensor:
    """(B, n * numbers, H, W) to (B, H * W * n, numbers)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, numbers)


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
        **overrides: fields of :class:`RetinaNetConfig` that shall differ from the preset.

    Raises:
        ValueError: for an unknown preset, backbone or field, with the nearest names; for a value that no
            RetinaNet can have.

    Example:
        >>> model = retinanet("resnet18", num_classes=3, min_size=240, max_size=320)
        >>> losses = model([torch.rand(3, 240, 320)], [{"boxes": boxes, "labels": labels}])
    """
    if preset not in RETINANET_PRESETS:
        raise unknown_name("preset", preset, RETINANET_PRESETS)
    check_field_names(RetinaNetConfig, overrides)
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return RetinaNet(replace(RETINANET_PRESETS[preset], backbone=backbone, **overrides))
