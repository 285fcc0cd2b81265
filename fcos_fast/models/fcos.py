"""FCOS (Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fcos_fast import ops
from fcos_fast.assignment import BACKGROUND, GroundTruth, Level, Targets
from fcos_fast.models.class_weights import weighted_sum
from fcos_fast.models.config import FCOSConfig, configure
from fcos_fast.models.detector import Detector
from fcos_fast.models.head import FCOSHead, HeadOutputs
from fcos_fast.models.padding import ignore_outside
from fcos_fast.models.presets import FCOS_PRESETS
from fcos_fast.models.sizes import Size
from fcos_fast.models.transform import ImageBatch


class FCOS(Detector):
    """FCOS, with torchvision's calling convention and parameter names.

    See :class:`Detector` for inputs and outputs; the losses are ``{"classification", "bbox_regression",
    "bbox_ctrness"}``.
    """

    config: FCOSConfig
    mean_num_positive: Tensor
    LOSSES = ("classification", "bbox_regression", "bbox_ctrness")

    def __init__(self, config: FCOSConfig) -> None:
        super().__init__(config)
        self.head = FCOSHead(
            config.fpn_channels,
            config.num_classes,
            len(config.strides),
            config.head_channels,
            config.head_convs,
            config.head_norm,
            config.prior,
            config.centerness_on,
            config.regression,
            config.scale,
            config.head_bias,
            config.head_dcn,
        )
        if config.normalizer == "moving_average":
            # As in detectron2: not saved and not shared, every run and every process starts with 300.
            self.register_buffer("mean_num_positive", torch.tensor(300.0), persistent=False)
            self._ddp_params_and_buffers_to_ignore = ["mean_num_positive"]
        self._units = config.strides if config.regression_unit == "stride" else (1,) * len(config.strides)

    def losses(
        self, images: Tensor, targets: Targets, reduction: dist.Work | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`Detector.losses`."""
        cls_logits, box_regression, centerness = self.network(images)
        if reduction is not None:
            reduction.wait()
        config, normalizers, weights = self.config, self._normalizers(targets), self.class_weights
        losses = ops.detection_loss(
            cls_logits if weights is None else [x.detach() for x in cls_logits],
            box_regression,
            centerness,
            targets,
            units=self._units,
            alpha=config.focal_alpha,
            gamma=config.focal_gamma,
            box_loss=config.box_loss,
            box_loss_smooth=config.box_loss_smooth,
            centerness_weighted=config.centerness_weighted,
            quality=config.quality,
            normalizers=normalizers,
        )
        if weights is not None:
            divisor = targets.num_positive.clamp(min=1) if normalizers is None else normalizers[0]
            losses["classification"] = self._weighted_classification_loss(
                cls_logits, targets.labels, weights, divisor
            )
        return losses

    def _weighted_classification_loss(
        self, cls_logits: Sequence[Tensor], labels: Tensor, weights: Tensor, divisor: Tensor
    ) -> Tensor:
        """The focal loss with a weight per class; slower than :func:`fcos_fast.ops.detection_loss`, which has none.

        Args:
            cls_logits: (B, C, H, W) of each level.
            labels: (B, P) of all locations.
            weights: (C,).
            divisor: normalizer, a scalar or (B,).
        """
        loss = partial(ops.sigmoid_focal_loss, alpha=self.config.focal_alpha, gamma=self.config.focal_gamma)
        by_level = labels.split([x.shape[2] * x.shape[3] for x in cls_logits], dim=1)
        sums = [
            weighted_sum(loss, x.flatten(2).transpose(1, 2), of_level, weights)
            for x, of_level in zip(cls_logits, by_level, strict=True)
        ]
        return (torch.stack(sums).sum(dim=0) / divisor).sum()

    def loss_floors(self, targets: Targets) -> dict[str, Tensor]:
        """As :meth:`Detector.loss_floors`: cross-entropy, the loss of centerness, is at least the targets' entropy.

        Empty for ``quality`` ``iou``, whose targets depend on the predictions.
        """
        config = self.config
        if config.quality == "iou":
            return {}
        positive = targets.labels > BACKGROUND
        entropy = torch.special.entr(targets.centerness) + torch.special.entr(1 - targets.centerness)
        entropy = torch.where(positive, entropy, 0.0)
        if config.normalizer == "image":
            return {"bbox_ctrness": (entropy.sum(1) / positive.sum(1).clamp(min=1)).mean()}
        moving = config.normalizer == "moving_average"
        num_positive = self.mean_num_positive if moving else targets.num_positive.clamp(min=1)
        processes = dist.get_world_size() if self._shares_totals() else 1
        return {"bbox_ctrness": entropy.sum() * processes / num_positive}

    def postprocess(self, outputs: HeadOutputs, batch: ImageBatch) -> list[dict[str, Tensor]]:
        """As :meth:`Detector.postprocess`."""
        config, units, levels = self.config, self._units, self.levels(batch.padded_size)
        if config.rule.location == "grid" and torch.compiler.is_exporting():
            # The operator takes steps as numbers, so torch.export would fix the image size.
            boxes = [_corners(*level) for level in zip(outputs.box_regression, levels, units, strict=True)]
            outputs, units = outputs._replace(box_regression=boxes), (1,) * len(levels)
            levels = [replace(level, step=(0.0, 0.0), offset=(0.0, 0.0)) for level in levels]
        return ops.postprocess(
            *outputs,
            levels,
            batch.sizes,
            units=units,
            score=config.score,
            score_threshold=config.score_threshold,
            threshold_on=config.threshold_on,
            multi_label=config.multi_label,
            topk_candidates=config.topk_candidates,
            topk_over=config.topk_over,
            topk_by=config.topk_by,
            iou_threshold=config.nms_threshold,
            class_agnostic=config.class_agnostic_nms,
            max_detections=config.max_detections,
            inclusive_boxes=config.inclusive_boxes,
            clip=config.clip,
            drop_empty=config.drop_empty == "before_nms",
        ).split()

    def levels(self, size: Size) -> list[Level]:
        """The levels of a padded image of (height, width), known before the network runs."""
        return self.config.rule.levels(self.feature_sizes(size), size, self.config.strides)

    def assign(self, batch: ImageBatch, gt: GroundTruth) -> Targets:
        """The targets of all locations of a batch."""
        levels = self.levels(batch.padded_size)
        targets = ops.assign_targets(gt, levels, self.config.rule)
        if not self.config.ignore_padding or not batch.is_padded:
            return targets
        _, sizes = batch.tensors()
        return ignore_outside(targets, levels, sizes)

    def _normalizers(self, targets: Targets) -> Tensor | None:
        """(3,) or (3, B) normalizers of the classification, box and centerness losses; None: the operator's defaults.

        If they are all-reduced, each process divides by the number of processes too. The mean over the processes then
        equals the loss of a single process, also with fewer positive locations than processes.
        """
        config, shares = self.config, self._shares_totals()
        if config.normalizer == "image":
            per_image = (targets.labels > BACKGROUND).sum(1).clamp(min=1)  # (B,)
            return (per_image * len(per_image)).to(torch.float32).expand(3, -1)
        by_weights = config.normalizer == "weights" and config.centerness_weighted
        is_default = config.normalizer != "moving_average" and by_weights == config.centerness_weighted
        if is_default and not shares:
            return None
        num_positive = targets.num_positive.clamp(min=1)
        if config.normalizer == "moving_average":
            with torch.no_grad():
                num_positive = self.mean_num_positive.mul_(0.9).add_(num_positive, alpha=0.1).clone()
        box = targets.centerness_sum.clamp(min=1e-6) if by_weights else num_positive
        normalizers = torch.stack((num_positive, box, num_positive))
        return normalizers / dist.get_world_size() if shares else normalizers


def _corners(ltrb: Tensor, level: Level, unit: float) -> Tensor:
    """(B, 4, H, W) distances in ``unit`` from the locations of ``level`` as distances in pixels from (0, 0)."""
    points = level.points(ltrb.device).t().unflatten(1, (level.height, level.width))  # (2, H, W)
    return ltrb.float() * unit + torch.cat((-points, points))


def fcos(
    backbone: str = "resnet50",
    num_classes: int | None = None,
    preset: str = "official-improved",
    **overrides: Any,
) -> FCOS:
    """Build an FCOS with random weights.

    Args:
        backbone: a name of ``fcos_fast.models.BACKBONES``.
        num_classes: number of classes C; labels are 0..C-1. None: the preset's.
        preset: a name of ``fcos_fast.models.presets.FCOS_PRESETS``.
        **overrides: fields of :class:`FCOSConfig` that differ from the preset.

    Raises:
        ValueError: unknown preset, backbone or field, with the nearest names; invalid value.

    Example:
        >>> model = fcos("resnet18", num_classes=3, min_size=240, max_size=320)
        >>> losses = model([torch.rand(3, 240, 320)], [{"boxes": boxes, "labels": labels}])
    """
    return FCOS(configure(FCOS_PRESETS, preset, backbone, num_classes, overrides))
