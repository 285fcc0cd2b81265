"""detectron2's FCOS and RetinaNet with the operators of :mod:`fcos_fast.ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear, _dense_box_regression_loss
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from fcos_fast import ops
from fcos_fast.assignment import RULES, GroundTruth, Level
from fcos_fast.boxes import has_area
from fcos_fast.detections import BatchDetections
from fcos_fast.integrations.layers import Replaced
from fcos_fast.integrations.subclasses import accelerated_class, overridden
from fcos_fast.models.retinanet import by_anchor, postprocess_anchors, sum_focal_loss

Maps = list[list[Tensor]]


def ground_truth(instances: Sequence[Instances]) -> GroundTruth:
    """The boxes of a batch, packed. Boxes without area are dropped: no location of FCOS matches them."""
    boxes = [image.gt_boxes.tensor.float() for image in instances]
    valid = [has_area(b) for b in boxes]
    return GroundTruth.pack(
        [b[keep] for b, keep in zip(boxes, valid, strict=True)],
        [image.gt_classes[keep] for image, keep in zip(instances, valid, strict=True)],
    )


def count_positives(model: DenseDetector, count: Tensor, images: int, initial: float) -> float:
    """Record the number of positives as detectron2 does; the moving average that divides the losses."""
    positives = int(count)  # synchronizes, as in detectron2
    get_event_storage().put_scalar("num_pos_anchors", positives / images)
    return float(model._ema_update("loss_normalizer", max(positives, 1), initial))


def _instances(found: BatchDetections, images: ImageList) -> list[Instances]:
    """The detections of each image."""
    return [
        Instances(size, pred_boxes=Boxes(d["boxes"]), scores=d["scores"], pred_classes=d["labels"].long())
        for size, d in zip(images.image_sizes, found.split(), strict=True)
    ]


class AcceleratedFCOS(FCOS):
    """detectron2's FCOS with fused target assignment, losses and postprocessing."""

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Maps, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """As FCOS: ``loss_fcos_cls``, ``loss_fcos_loc`` and ``loss_fcos_ctr``."""
        logits, deltas, centerness = predictions
        rule = replace(RULES["detectron2"], radius=self.center_sampling_radius)
        levels = self._levels(logits)
        targets = ops.assign_targets(ground_truth(gt_instances), levels, rule)
        normalizer = count_positives(self, targets.num_positive, len(gt_instances), 300)
        losses = ops.detection_loss(
            logits,
            [x.relu() for x in deltas],  # as Box2BoxTransformLinear
            centerness,
            targets,
            units=[level.stride for level in levels],
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            centerness_weighted=False,
            normalizers=torch.full((3,), normalizer, device=logits[0].device),
        )
        return dict(zip(("loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"), losses.values(), strict=True))

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Maps
    ) -> list[Instances]:
        """As FCOS: ``pred_boxes``, ``scores`` and ``pred_classes`` of each image. Boxes are clipped after NMS."""
        logits, deltas, centerness = ([x.detach() for x in maps] for maps in predictions)
        levels = self._levels(logits)
        found = ops.postprocess(
            logits,
            [x.relu() for x in deltas],
            centerness,
            levels,
            images.image_sizes,
            units=[level.stride for level in levels],
            score_threshold=self.test_score_thresh,
            threshold_on="score",
            topk_candidates=self.test_topk_candidates,
            iou_threshold=self.test_nms_thresh,
            max_detections=self.max_detections_per_image,
            clip="after_nms",
        )
        return _instances(found, images)

    def _levels(self, maps: Sequence[Tensor]) -> list[Level]:
        offset, strides = self.anchor_generator.offset, self.anchor_generator.strides
        levels = []
        for i, (x, stride) in enumerate(zip(maps, strides, strict=True)):
            size_range = (4.0 * stride if i else 0.0, float("inf") if i == len(strides) - 1 else 8.0 * stride)
            step, shift = (float(stride), float(stride)), (offset * stride, offset * stride)
            levels.append(Level(x.shape[2], x.shape[3], float(stride), step, shift, size_range))
        return levels


class AcceleratedRetinaNet(RetinaNet):
    """detectron2's RetinaNet: anchors matched by one operator, box losses of the positives only, padded NMS."""

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: Maps, gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """As RetinaNet: ``loss_cls`` and ``loss_box_reg``."""
        gt = ground_truth(gt_instances)
        if len(gt.boxes) != sum(len(image) for image in gt_instances):
            # detectron2 lets a box without area claim every anchor that overlaps none
            return super().forward_training(images, features, predictions, gt_instances)
        by_level = [level.tensor for level in self.anchor_generator(features)]
        anchors = torch.cat(by_level)
        matcher = self.anchor_matcher
        matches = ops.match_anchors(
            anchors,
            gt,
            high_threshold=matcher.thresholds[2],
            low_threshold=matcher.thresholds[1],
            low_quality="own_match" if matcher.allow_low_quality_matches else "none",
        )
        normalizer = count_positives(self, matches.num_positive, len(gt_instances), 100)
        logits, deltas = predictions
        counts = [len(level) for level in by_level]
        focal = self.num_classes, self.focal_loss_alpha, self.focal_loss_gamma
        classification = [
            sum_focal_loss(x, labels, *focal)
            for x, labels in zip(logits, matches.labels.split(counts, dim=1), strict=True)
        ]
        image, anchor = (matches.labels >= 0).nonzero(as_tuple=True)
        predicted = torch.cat([by_anchor(x, 4) for x in deltas], dim=1)
        box_loss = _dense_box_regression_loss(
            [Boxes(anchors[anchor])],
            self.box2box_transform,
            [predicted[image, anchor][None]],
            [gt.boxes[matches.matched[image, anchor].long()]],
            torch.ones(1, len(image), dtype=torch.bool, device=anchors.device),
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {
            "loss_cls": torch.stack(classification).sum() / normalizer,
            "loss_box_reg": box_loss / normalizer,
        }

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Maps
    ) -> list[Instances]:
        """As RetinaNet: ``pred_boxes``, ``scores`` and ``pred_classes`` of each image. Boxes are clipped after NMS."""
        logits, deltas = ([x.detach() for x in maps] for maps in predictions)
        found = postprocess_anchors(
            [by_anchor(x, self.num_classes) for x in logits],
            [by_anchor(x, 4) for x in deltas],
            [level.tensor for level in self.anchor_generator(features)],
            torch.tensor(images.image_sizes, device=logits[0].device),
            score_threshold=self.test_score_thresh,
            topk_candidates=self.test_topk_candidates,
            iou_threshold=self.test_nms_thresh,
            max_detections=self.max_detections_per_image,
            clip="after_nms",
            decode=self._decode,
        )
        return _instances(found, images)

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (..., 4)."""
        return self.box2box_transform.apply_deltas(deltas.flatten(0, -2), anchors.flatten(0, -2)).view_as(
            deltas
        )


def _why_not_fcos(model: FCOS) -> str:
    """What an accelerated FCOS would compute differently; "" if nothing."""
    generator, transform = model.anchor_generator, model.box2box_transform
    cells = [[[-s / 2, -s / 2, s / 2, s / 2]] for s in generator.strides]
    plain = {
        "box2box_transform": type(transform) is Box2BoxTransformLinear and transform.normalize_by_size,
        "anchor_generator": [cell.tolist() for cell in generator.cell_anchors] == cells,
    }
    wrong = [name for name, is_plain in plain.items() if not is_plain]
    return f"its {', '.join(wrong)} is not what FCOS has" if wrong else ""


def _why_not_retinanet(model: RetinaNet) -> str:
    """What an accelerated RetinaNet would compute differently; "" if nothing."""
    return "" if list(model.anchor_matcher.labels) == [0, -1, 1] else "its anchor_matcher has other labels"


_DETECTORS: dict[type[nn.Module], tuple[type[nn.Module], Callable[[Any], str], str]] = {
    FCOS: (AcceleratedFCOS, _why_not_fcos, "target assignment, losses and postprocessing"),
    RetinaNet: (AcceleratedRetinaNet, _why_not_retinanet, "anchor matching, losses and postprocessing"),
}
"""Detector to its accelerated class, the check of its settings, and what is fused."""


def replace_classes(model: nn.Module) -> tuple[Replaced, list[str]]:
    """Replace the class of detectron2's FCOS or RetinaNet, which may be a part of ``model``.

    Returns:
        The detectors with their previous classes, and a summary of each replacement.

    Raises:
        TypeError: there is no such detector, or it has methods or settings that would be ignored.
    """
    replaced: Replaced = []
    done = []
    for module in model.modules():
        for kind, (accelerated, why_not, fused) in _DETECTORS.items():
            if not isinstance(module, kind):
                continue
            name = type(module).__name__
            own = [n for n in overridden(type(module), kind) if n != "forward"]
            reason = f"it overrides {', '.join(own)}" if own else why_not(module)
            if reason:
                raise TypeError(f"accelerate: {name} of detectron2: {reason}")
            replaced.append((module, type(module)))
            done.append(f"{name}: {fused} fused")
            module.__class__ = accelerated_class(accelerated, type(module))
    if not replaced:
        raise TypeError(
            f"accelerate: this {type(model).__name__} of detectron2 has no FCOS or RetinaNet; nothing can "
            "be replaced"
        )
    return replaced, done
