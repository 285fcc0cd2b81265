"""Torchvision's FCOS with fused assignment, losses and post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.models.detection.fcos import FCOS, FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList

from fcos_fast import ops
from fcos_fast.assignment import RULES, GroundTruth, Level
from fcos_fast.integrations.cuda_graphs import Sizes
from fcos_fast.integrations.detector import AcceleratedDetector
from fcos_fast.models.head import HeadOutputs


class AcceleratedFCOSHead(FCOSHead):
    """Torchvision's head, its outputs left as the convolutions lay them in memory."""

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Feature maps to the three outputs of every level."""
        outputs = HeadOutputs([], [], [])
        for x in features:
            x_class = self.classification_head.conv(x)
            x_box = self.regression_head.conv(x)
            outputs.cls_logits.append(self.classification_head.cls_logits(x_class))
            outputs.box_regression.append(self.regression_head.bbox_reg(x_box).relu())
            outputs.centerness.append(self.regression_head.bbox_ctrness(x_box))
        return outputs


class AcceleratedFCOS(AcceleratedDetector, FCOS):
    """Torchvision's FCOS after :func:`fcos_fast.accelerate`."""

    def _losses(
        self,
        batch: ImageList,
        sizes: Sizes,
        outputs: HeadOutputs,
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        gt = GroundTruth.pack(
            [target["boxes"] for target in targets], [target["labels"] for target in targets]
        )
        levels = self._levels(batch, sizes)
        rule = replace(RULES["torchvision"], radius=float(self.center_sampling_radius))
        return ops.detection_loss(
            *outputs,
            ops.assign_targets(gt, levels, rule),
            units=[level.stride for level in levels],
            centerness_weighted=False,
        )

    def _detections(self, batch: ImageList, sizes: Sizes, outputs: HeadOutputs) -> list[dict[str, Tensor]]:
        if torch.is_grad_enabled() and any(x.requires_grad for maps in outputs for x in maps):
            return self._differentiable_detections(batch, sizes, outputs)
        levels = self._levels(batch, sizes)
        return ops.postprocess(
            *outputs,
            levels,
            batch.image_sizes,
            units=[level.stride for level in levels],
            score_threshold=self.score_thresh,
            threshold_on="score",
            topk_candidates=self.topk_candidates,
            iou_threshold=self.nms_thresh,
            max_detections=self.detections_per_img,
        ).split()

    def _differentiable_detections(
        self, batch: ImageList, sizes: Sizes, outputs: HeadOutputs
    ) -> list[dict[str, Tensor]]:
        """Torchvision's own, through which gradients reach the images, as a few users want."""
        names = ("cls_logits", "bbox_regression", "bbox_ctrness")
        flat = {
            name: [x.flatten(2).transpose(1, 2) for x in maps]
            for name, maps in zip(names, outputs, strict=True)
        }
        anchors = list(self._anchors(batch, sizes).split([height * width for height, width in sizes]))
        return self.postprocess_detections(flat, [anchors] * len(batch.image_sizes), batch.image_sizes)

    def _levels(self, batch: ImageList, feature_sizes: Sizes) -> list[Level]:
        """The centres of ``self.anchor_generator``'s anchors; their side is the unit of radius, range and distances."""
        height, width = batch.tensors.shape[-2:]
        sides = [
            2.0 * round(sizes[0] / 2) for sizes in self.anchor_generator.sizes
        ]  # as the generator rounds
        levels = []
        for i, ((rows, columns), side) in enumerate(zip(feature_sizes, sides, strict=True)):
            size_range = (0.0 if i == 0 else 4 * side, float("inf") if i == len(sides) - 1 else 8 * side)
            step = (float(height // rows), float(width // columns))
            levels.append(Level(rows, columns, side, step, (0.0, 0.0), size_range))
        return levels


def check_fcos(model: FCOS) -> None:
    """Raise a TypeError or ValueError where parts of ``model`` are not those that torchvision's FCOS has."""
    head = model.head
    parts = {
        "head": (head, FCOSHead),
        "head.classification_head": (getattr(head, "classification_head", None), FCOSClassificationHead),
        "head.regression_head": (getattr(head, "regression_head", None), FCOSRegressionHead),
    }
    for name, (part, expected) in parts.items():
        if type(part) is not expected:
            raise TypeError(
                f"accelerate: model.{name} is {type(part).__name__}; expected torchvision's {expected.__name__}, "
                "whose forward is known"
            )
    if not model.box_coder.normalize_by_size:
        raise ValueError("accelerate: model.box_coder does not normalize by size; torchvision's FCOS does")
    ratios = model.anchor_generator.aspect_ratios
    if any(tuple(r) != (1.0,) for r in ratios):
        raise ValueError(
            f"accelerate: the anchors' aspect ratios are {ratios}; FCOS has (1.0,) at every level"
        )
