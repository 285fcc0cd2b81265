"""A detector as one traceable function of tensors: normalization, network, post-processing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcos_fast.detections import BatchDetections
from fcos_fast.models import FCOS, Detector, FCOSConfig, HeadOutputs, RetinaNet, RetinaNetOutputs
from fcos_fast.models.anchors import decode_boxes
from fcos_fast.models.folding import conv_norm_pairs, fold_batch_norms
from fcos_fast.models.retinanet import by_anchor
from fcos_fast.models.suppression import suppress
from fcos_fast.models.transform import image_size

NONE = -torch.inf
"""Rank and score of a (location, class) pair that is no candidate."""


class Candidates(NamedTuple):
    """What a level, or an image, proposes at its P locations or anchors.

    Attributes:
        ranks: (B, P, C), or (B, P, 1) if only one class of a location counts; the greatest are selected. ``NONE``: no
            candidate.
        scores: as ``ranks``; in 0..1 or ``NONE``.
        boxes: (B, P, 4) xyxy in pixels.
        labels: (B, P, 1) int64, that class; None: 0..C-1.
    """

    ranks: Tensor
    scores: Tensor
    boxes: Tensor
    labels: Tensor | None = None


class DetectionGraph(nn.Module):
    """A copy of a detector for export, with the same detections.

    It consists of standard operators, ``fcos_fast::group_norm_relu`` and ``fcos_fast::nms_padded``. Batch size, height
    and width can be dynamic. Equal scores are in (level, location, class) order if ``topk`` selects the first of
    equals, as ONNX defines it.

    Args:
        model: the detector; it does not change.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        fold_batch_norms(self.model.backbone, conv_norm_pairs(self.model.backbone))

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in a batch.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1], each in the upper left corner.
            sizes: (B, 2) int64, height and width of each image; pixels beyond them are ignored.

        Returns:
            Boxes (B, D, 4), scores (B, D), labels (B, D), counts (B,), as :class:`BatchDetections` defines them (a
            plain tuple: a saved program has no classes); boxes are xyxy in pixels of ``images``, in the convention that
            the network learns.
        """
        outputs = self.model.network(self._normalize(images, sizes))
        if isinstance(self.model, RetinaNet):
            return tuple(self._detect_by_anchors(self.model, RetinaNetOutputs(*outputs), images, sizes))
        assert isinstance(self.model, FCOS)  # there are two detectors
        return tuple(self._detect_by_locations(self.model, HeadOutputs(*outputs), images, sizes))

    def _normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        x = self.model.transform._normalize(images)
        down, across = (torch.arange(side, device=x.device) for side in image_size(x))
        inside = (down < sizes[:, :1])[:, :, None] & (across < sizes[:, 1:])[:, None, :]  # (B, H, W)
        return torch.where(inside[:, None], x, 0.0)

    def _detect_by_locations(
        self, model: FCOS, outputs: HeadOutputs, images: Tensor, sizes: Tensor
    ) -> BatchDetections:
        config = model.config
        levels = []
        for i, level in enumerate(model.levels(image_size(images))):
            ltrb = outputs.box_regression[i].flatten(2).transpose(1, 2) * model._units[i]  # (B, P, 4)
            points = level.points(ltrb.device)
            boxes = torch.cat((points - ltrb[..., :2], points + ltrb[..., 2:]), dim=-1)
            levels.append(self._candidates(config, outputs.cls_logits[i], outputs.centerness[i], boxes))
        if config.topk_over == "image":
            levels = [_concatenated(levels)]
        selected = [_best(level, config.topk_candidates, config.topk_by == "score") for level in levels]
        return suppress(
            *_together(selected),
            sizes,
            iou_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            inclusive_boxes=config.inclusive_boxes,
            drop_empty=config.drop_empty == "before_nms",
            clip=config.clip,
            class_agnostic=config.class_agnostic_nms,
        )

    def _candidates(
        self, config: FCOSConfig, cls_logits: Tensor, centerness: Tensor, boxes: Tensor
    ) -> Candidates:
        logits = cls_logits.flatten(2).transpose(1, 2)  # (B, P, C)
        labels = None
        if not config.multi_label:
            labels = torch.where(logits.isnan(), NONE, logits).argmax(dim=2, keepdim=True)
            logits = logits.gather(2, labels)
        probabilities = scores = logits.sigmoid()
        if config.score != "classification":
            scores = scores * centerness.flatten(2).transpose(1, 2).sigmoid()
        if config.score == "sqrt":
            scores = scores.sqrt()
        passing = (scores if config.threshold_on == "score" else probabilities) > config.score_threshold
        passing = passing & (scores >= 0)  # false for NaN
        ranks = scores if config.topk_by == "score" else probabilities
        ranks, scores = (torch.where(passing, x, NONE) for x in (ranks, scores))
        return Candidates(ranks, scores, boxes, labels)

    def _detect_by_anchors(
        self, model: RetinaNet, outputs: RetinaNetOutputs, images: Tensor, sizes: Tensor
    ) -> BatchDetections:
        config = model.config
        selected = []
        for maps, deltas, anchors in zip(*outputs, model._anchors(image_size(images)), strict=True):
            logits = by_anchor(maps, config.num_classes)  # (B, P, C)
            scores = logits.sigmoid()
            passing = scores > config.score_threshold  # false for NaN
            ranks, scores = (torch.where(passing, x, NONE) for x in (logits, scores))
            candidates = Candidates(ranks, scores, decode_boxes(by_anchor(deltas, 4), anchors))
            selected.append(_best(candidates, config.topk_candidates))
        return suppress(
            *_together(selected),
            sizes,
            iou_threshold=config.nms_threshold,
            max_detections=config.max_detections,
            inclusive_boxes=config.inclusive_boxes,
            drop_empty=config.drop_empty == "before_nms",
        )


def _concatenated(levels: Sequence[Candidates]) -> Candidates:
    """The candidates of all levels of an image."""
    labels = [level.labels for level in levels if level.labels is not None]
    ranks, scores, boxes = (torch.cat(parts, dim=1) for parts in zip(*(x[:3] for x in levels), strict=True))
    return Candidates(ranks, scores, boxes, torch.cat(labels, dim=1) if labels else None)


def _together(selected: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of all levels."""
    boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*selected, strict=True))
    return boxes, scores, labels


def _best(candidates: Candidates, count: int, by_rank: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, N, 4), scores (B, N) and labels (B, N) of the ``count`` candidates with the greatest ranks.

    Their order decides between equal scores: by rank, or as they were.
    """
    ranks = candidates.ranks.flatten(1)
    pairs = ranks.topk(torch.sym_min(count, ranks.shape[1])).indices  # (B, N)
    if not by_rank:
        pairs = pairs.sort().values
    classes = candidates.ranks.shape[2]
    rows = pairs // classes
    labels = pairs % classes if candidates.labels is None else candidates.labels.flatten(1).gather(1, rows)
    boxes = candidates.boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    return boxes, candidates.scores.flatten(1).gather(1, pairs), labels
