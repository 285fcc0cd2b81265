"""Torchvision's RetinaNet with fused anchor matching, losses and post-processing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import (
    RetinaNet,
    RetinaNetClassificationHead,
    RetinaNetHead,
    RetinaNetRegressionHead,
)

from fcos_fast import ops
from fcos_fast.assignment import AnchorMatches, GroundTruth
from fcos_fast.integrations.cuda_graphs import Sizes
from fcos_fast.integrations.detector import AcceleratedDetector
from fcos_fast.models.anchors import MAX_LOG_RATIO, decode_boxes, encode_boxes, matched_box_loss
from fcos_fast.models.retinanet import postprocess_anchors
from fcos_fast.models.transform import ImageBatch


class AcceleratedRetinaNet(AcceleratedDetector, RetinaNet):  # type: ignore[misc]  # torchvision is not annotated
    """Torchvision's RetinaNet after :func:`fcos_fast.accelerate`."""

    proposal_matcher: Matcher

    def _losses(
        self,
        batch: ImageList,
        sizes: Sizes,
        outputs: dict[str, Tensor],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        anchors = self._anchors(batch, sizes).float()
        gt = self._ground_truth(targets)
        matches = ops.match_anchors(
            anchors,
            gt,
            high_threshold=self.proposal_matcher.high_threshold,
            low_threshold=self.proposal_matcher.low_threshold,
            low_quality="own_match" if self.proposal_matcher.allow_low_quality_matches else "none",
        )
        return {
            "classification": _classification_loss(outputs["cls_logits"], matches),
            "bbox_regression": self._regression_loss(outputs["bbox_regression"], anchors, gt, matches),
        }

    def _regression_loss(
        self, deltas: Tensor, anchors: Tensor, gt: GroundTruth, matches: AnchorMatches
    ) -> Tensor:
        """The box loss per matched anchor, averaged over the images; deltas are (B, A, 4)."""
        sums = matched_box_loss(deltas, matches.matched, anchors, gt.boxes, self._box_loss)
        return (sums / (matches.labels >= 0).sum(dim=1).clamp(min=1)).mean()

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(N,) of encoded boxes (N, 4), their anchors and targets; torchvision's ``_box_loss`` without the sum."""
        head = self.head.regression_head
        encode, decode = _code(head.box_coder)
        if head._loss_type not in ("l1", "smooth_l1"):
            return ops.box_loss(decode(deltas, anchors), boxes, head._loss_type)
        beta = 0.0 if head._loss_type == "l1" else 1.0
        return F.smooth_l1_loss(deltas, encode(boxes, anchors), reduction="none", beta=beta).sum(dim=1)

    def _detections(
        self, batch: ImageList, sizes: Sizes, outputs: dict[str, Tensor]
    ) -> list[dict[str, Tensor]]:
        anchors = self._anchors(batch, sizes)
        per_location = self.anchor_generator.num_anchors_per_location()
        counts = [n * height * width for n, (height, width) in zip(per_location, sizes, strict=True)]
        _, decode = _code(self.box_coder)
        _, image_sizes = ImageBatch(batch.tensors, batch.image_sizes).tensors()
        return postprocess_anchors(
            outputs["cls_logits"].split(counts, dim=1),
            outputs["bbox_regression"].split(counts, dim=1),
            anchors.split(counts),
            image_sizes,
            score_threshold=self.score_thresh,
            topk_candidates=self.topk_candidates,
            iou_threshold=self.nms_thresh,
            max_detections=self.detections_per_img,
            decode=decode,
        ).split()


def _classification_loss(logits: Tensor, matches: AnchorMatches) -> Tensor:
    """The focal loss per matched anchor, averaged over the images; logits are (B, A, C)."""
    losses = [
        ops.sigmoid_focal_loss(x, labels, reduction="sum") / (labels >= 0).sum().clamp(min=1)
        for x, labels in zip(logits, matches.labels, strict=True)
    ]
    return torch.stack(losses).mean()


def _code(coder: BoxCoder) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Encoding and decoding: ours if equivalent, because torchvision's copies constants and so waits for a GPU."""
    if tuple(coder.weights) == (1, 1, 1, 1) and coder.bbox_xform_clip == MAX_LOG_RATIO:
        return encode_boxes, decode_boxes

    def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
        return coder.decode_single(deltas.flatten(0, -2), anchors.flatten(0, -2)).view(deltas.shape)

    return coder.encode_single, decode


ACCELERATED = {"": AcceleratedRetinaNet}
"""Name of each part to its accelerated class."""

PARTS = {
    "": RetinaNet,
    "head": RetinaNetHead,
    "head.classification_head": RetinaNetClassificationHead,
    "head.regression_head": RetinaNetRegressionHead,
    "proposal_matcher": Matcher,
    "box_coder": BoxCoder,
}
"""Name of each part that the accelerated RetinaNet relies on to its class in torchvision."""
