"""Torchvision's FCOS with fused assignment, losses and post-processing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList

from fcos_fast import ops
from fcos_fast.assignment import RULES, Level
from fcos_fast.integrations.cuda_graphs import Sizes
from fcos_fast.integrations.detector import AcceleratedDetector


class AcceleratedClassificationHead(FCOSClassificationHead):  # type: ignore[misc]  # torchvision is not annotated
    """Torchvision's head, but its outputs keep the memory format of the convolutions."""

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Feature maps to logits (B, C, H, W) of every level."""
        return [self.cls_logits(self.conv(features)) for features in x]


class AcceleratedRegressionHead(FCOSRegressionHead):  # type: ignore[misc]  # torchvision is not annotated
    """Torchvision's head, but its outputs keep the memory format of the convolutions."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps to distances (B, 4, H, W) and centerness (B, 1, H, W) of every level."""
        towers = [self.conv(features) for features in x]
        return [self.bbox_reg(t).relu() for t in towers], [self.bbox_ctrness(t) for t in towers]


class AcceleratedFCOS(AcceleratedDetector, FCOS):  # type: ignore[misc]  # torchvision is not annotated
    """Torchvision's FCOS after :func:`fcos_fast.accelerate`."""

    center_sampling_radius: float
    postprocess_detections: Callable[..., list[dict[str, Tensor]]]

    def _losses(
        self,
        batch: ImageList,
        sizes: Sizes,
        outputs: dict[str, list[Tensor]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        gt = self._ground_truth(targets)
        levels = self._levels(batch, sizes)
        rule = replace(RULES["torchvision"], radius=float(self.center_sampling_radius))
        cls_logits, box_regression, centerness = outputs.values()
        return ops.detection_loss(
            cls_logits,
            box_regression,
            centerness,
            ops.assign_targets(gt, levels, rule),
            units=[level.stride for level in levels],
            centerness_weighted=False,
        )

    def _detections(
        self, batch: ImageList, sizes: Sizes, outputs: dict[str, list[Tensor]]
    ) -> list[dict[str, Tensor]]:
        if torch.is_grad_enabled() and any(x.requires_grad for maps in outputs.values() for x in maps):
            return self._differentiable_detections(batch, sizes, outputs)
        levels = self._levels(batch, sizes)
        cls_logits, box_regression, centerness = outputs.values()
        return ops.postprocess(
            cls_logits,
            box_regression,
            centerness,
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
        self, batch: ImageList, sizes: Sizes, outputs: dict[str, list[Tensor]]
    ) -> list[dict[str, Tensor]]:
        """Torchvision's own post-processing, which is differentiable."""
        flat = {name: [x.flatten(2).transpose(1, 2) for x in maps] for name, maps in outputs.items()}
        anchors = list(self._anchors(batch, sizes).split([height * width for height, width in sizes]))
        return self.postprocess_detections(flat, [anchors] * len(batch.image_sizes), batch.image_sizes)

    def _call_hooked_generator(self, batch: ImageList, sizes: Sizes) -> None:
        """Call the anchor generator if it has hooks; its anchors are not used.

        Raises:
            RuntimeError: a hook returned other anchors.
        """
        generator = self.anchor_generator
        if not (generator._forward_hooks or generator._forward_pre_hooks):
            return
        hooked, expected = self._anchors(batch, sizes), self._anchors(batch, sizes, generator.forward)
        if not torch.equal(hooked, expected):
            raise RuntimeError(
                "a hook on model.anchor_generator changed its anchors, but an accelerated FCOS does not use them; "
                "remove the hook, or call fcos_fast.restore(model)"
            )

    def _levels(self, batch: ImageList, feature_sizes: Sizes) -> list[Level]:
        """Levels at the centers of the generator's anchors; their side is the unit of radius, range and distances."""
        self._call_hooked_generator(batch, feature_sizes)
        height, width = batch.tensors.shape[-2:]
        # as the generator rounds
        sides = [2.0 * round(sizes[0] / 2) for sizes in self.anchor_generator.sizes]
        levels = []
        for i, ((rows, columns), side) in enumerate(zip(feature_sizes, sides, strict=True)):
            size_range = (0.0 if i == 0 else 4 * side, float("inf") if i == len(sides) - 1 else 8 * side)
            step = (float(height // rows), float(width // columns))
            levels.append(Level(rows, columns, side, step, (0.0, 0.0), size_range))
        return levels


ACCELERATED = {
    "head.classification_head": AcceleratedClassificationHead,
    "head.regression_head": AcceleratedRegressionHead,
    "": AcceleratedFCOS,
}
"""Name of each part to its accelerated class."""


PARTS = {
    "": FCOS,
    "head": FCOSHead,
    "head.classification_head": FCOSClassificationHead,
    "head.regression_head": FCOSRegressionHead,
    "anchor_generator": AnchorGenerator,
    "box_coder": BoxLinearCoder,
}
"""Name of each part that the accelerated FCOS relies on to its class in torchvision."""


def check_fcos(model: Any) -> None:
    """Raise a ValueError if ``model`` has settings that torchvision's FCOS cannot have."""
    if not model.box_coder.normalize_by_size:
        raise ValueError(
            "accelerate: model.box_coder.normalize_by_size is False; expected True, as in torchvision's FCOS"
        )
    ratios = model.anchor_generator.aspect_ratios
    if any(tuple(r) != (1.0,) for r in ratios):
        raise ValueError(
            f"accelerate: the anchors' aspect ratios are {ratios}; expected (1.0,) at every level"
        )
