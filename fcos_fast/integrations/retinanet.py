"""Torchvision's RetinaNet with a fused focal loss, anchor matching without the matrix of IoUs, and exact NMS."""

from __future__ import annotations

import math
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
from torchvision.ops import clip_boxes_to_image

from fcos_fast import ops
from fcos_fast.assignment import AnchorMatches, GroundTruth
from fcos_fast.integrations.cuda_graphs import Sizes
from fcos_fast.integrations.detector import AcceleratedDetector
from fcos_fast.models.anchors import MAX_LOG_RATIO, decode_boxes, encode_boxes, matched_box_loss


class AcceleratedRetinaNet(AcceleratedDetector, RetinaNet):
    """Torchvision's RetinaNet after :func:`fcos_fast.accelerate`."""

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
            allow_low_quality=self.proposal_matcher.allow_low_quality_matches,
        )
        return {
            "classification": _classification_loss(outputs["cls_logits"], matches),
            "bbox_regression": self._regression_loss(outputs["bbox_regression"], anchors, gt, matches),
        }

    def _regression_loss(
        self, deltas: Tensor, anchors: Tensor, gt: GroundTruth, matches: AnchorMatches
    ) -> Tensor:
        """The mean over the images of their box loss per matched anchor; deltas are (B, A, 4)."""
        sums = matched_box_loss(deltas, matches.matched, anchors, gt.boxes, self._box_loss)
        return (sums / (matches.labels >= 0).sum(dim=1).clamp(min=1)).mean()

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """(N,), which torchvision's ``_box_loss`` sums, of coded boxes (N, 4), their anchors and targets."""
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
        levels = list(
            zip(
                outputs["cls_logits"].split(counts, dim=1),
                outputs["bbox_regression"].split(counts, dim=1),
                anchors.split(counts),
                strict=True,
            )
        )
        return [
            self._detect(size, [(logits[b], boxes[b], at) for logits, boxes, at in levels])
            for b, size in enumerate(batch.image_sizes)
        ]

    def _detect(
        self, size: tuple[int, int], levels: list[tuple[Tensor, Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """The detections of one image from logits (A, C), regression (A, 4) and anchors (A, 4) per level."""
        candidates = [self._candidates(*level) for level in levels]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        boxes = clip_boxes_to_image(boxes, size)
        keep = ops.batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}

    def _candidates(
        self, logits: Tensor, regression: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 4), scores and labels (N,) of the best of a level that pass the threshold."""
        flat = logits.flatten()
        places = (flat > _surely_below(self.score_thresh)).nonzero()[:, 0]
        scores = flat[places].to(anchors.dtype).sigmoid()
        passes = scores > self.score_thresh
        places, scores = places[passes], scores[passes]
        scores, best = scores.topk(min(self.topk_candidates, len(scores)))
        places = places[best]
        rows = places // logits.shape[1]
        boxes = self.box_coder.decode_single(regression[rows].to(anchors.dtype), anchors[rows])
        return boxes, scores, places % logits.shape[1]


def _surely_below(score: float) -> float:
    """A logit whose sigmoid is below ``score`` by more than rounding, so that few sigmoids have to be computed."""
    if not 0 < score < 1:
        return -math.inf if score <= 0 else math.inf
    return math.log(score / (1 - score)) - 0.1


def _classification_loss(logits: Tensor, matches: AnchorMatches) -> Tensor:
    """The mean over the images of their focal loss per matched anchor; logits are (B, A, C)."""
    losses = [
        ops.sigmoid_focal_loss(x, labels, reduction="sum") / (labels >= 0).sum().clamp(min=1)
        for x, labels in zip(logits, matches.labels, strict=True)
    ]
    return torch.stack(losses).mean()


def _code(coder: BoxCoder) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """Encoding and decoding: ours where torchvision's do the same, which copies constants and so waits for a GPU."""
    if tuple(coder.weights) == (1, 1, 1, 1) and coder.bbox_xform_clip == MAX_LOG_RATIO:
        return encode_boxes, decode_boxes
    return coder.encode_single, coder.decode_single


ACCELERATED = {"": AcceleratedRetinaNet}
"""What takes over, by the name of the part."""

PARTS = {
    "": RetinaNet,
    "head": RetinaNetHead,
    "head.classification_head": RetinaNetClassificationHead,
    "head.regression_head": RetinaNetRegressionHead,
    "proposal_matcher": Matcher,
    "box_coder": BoxCoder,
}
"""What torchvision's RetinaNet is made of, as far as the accelerated one relies on it."""
