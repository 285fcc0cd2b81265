"""mmdetection's FCOSHead, RetinaHead and FocalLoss with the operators of :mod:`fcos_fast.ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import FCOSHead, RetinaHead
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, IoULoss
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.models.task_modules.assigners import BboxOverlaps2D, MaxIoUAssigner
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from mmdet.models.task_modules.prior_generators import MlvlPointGenerator, anchor_inside_flags
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from fcos_fast import ops
from fcos_fast.assignment import BACKGROUND, IGNORED, AssignmentRule, GroundTruth, Level
from fcos_fast.boxes import has_area
from fcos_fast.detections import BatchDetections
from fcos_fast.integrations.layers import Replaced
from fcos_fast.integrations.subclasses import accelerated_class
from fcos_fast.models.retinanet import by_anchor, postprocess_anchors, sum_focal_loss

Metas = Sequence[dict[str, Any]]


def ground_truth(instances: Sequence[InstanceData]) -> GroundTruth:
    """The boxes of a batch, packed. Boxes without area are dropped: no location of FCOS matches them."""
    boxes = [get_box_tensor(image.bboxes).float() for image in instances]
    valid = [has_area(b) for b in boxes]
    labels = [image.labels for image in instances]
    return GroundTruth.pack(
        [b[keep] for b, keep in zip(boxes, valid, strict=True)],
        [c[keep] for c, keep in zip(labels, valid, strict=True)],
    )


class AcceleratedFocalLoss(FocalLoss):
    """mmdetection's focal loss; class targets are read without one-hot rows."""

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Logits (N, C) and classes (N,), C for background, or dense targets (N, C); see mmdetection's FocalLoss."""
        if self.activated:
            return super().forward(pred, target, weight, avg_factor, reduction_override)
        reduction = reduction_override or self.reduction
        if target.dim() < pred.dim():
            target = torch.where(target < pred.shape[-1], target, BACKGROUND)
        else:
            target = target.to(pred.dtype)
        of_rows = None  # weights that the operator can apply
        if weight is not None and weight.numel() == len(pred) and target.shape == (len(pred),):
            of_rows = weight.detach().view(len(pred)).to(torch.promote_types(weight.dtype, torch.float32))
            weight = None
        if weight is None and avg_factor is not None and reduction == "mean":
            total = ops.sigmoid_focal_loss(pred, target, self.alpha, self.gamma, "sum", weight=of_rows)
            return self.loss_weight * total / (avg_factor + torch.finfo(torch.float32).eps)
        losses = ops.sigmoid_focal_loss(pred, target, self.alpha, self.gamma, weight=of_rows)
        if weight is not None and weight.shape != losses.shape:
            weight = weight.view(len(losses), -1)  # (N, 1) per row, (N, C) if it was flattened
        return self.loss_weight * weight_reduce_loss(losses, weight, reduction, avg_factor)


class AcceleratedFCOSHead(FCOSHead):
    """mmdetection's FCOS head with fused target assignment, losses and postprocessing."""

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Metas,
        batch_gt_instances_ignore: Sequence[InstanceData] | None = None,
    ) -> dict[str, Tensor]:
        """As FCOSHead: scalar losses ``loss_cls``, ``loss_bbox`` and ``loss_centerness``."""
        rule = AssignmentRule(
            sampling="center_clipped" if self.center_sampling else "box",
            radius=float(self.center_sample_radius),
        )
        targets = ops.assign_targets(ground_truth(batch_gt_instances), self._levels(cls_scores), rule)
        positives, centerness = reduce_mean(targets.totals).unbind()
        positives = positives.clamp(min=1)
        dtype = bbox_preds[0].dtype  # float32 under autocast too
        strides = [stride[0] for stride in self.prior_generator.strides]
        losses = ops.detection_loss(
            [x.to(dtype) for x in cls_scores],
            bbox_preds,
            [x.to(dtype) for x in centernesses],
            targets,
            units=strides if self.norm_on_bbox else [1] * len(strides),
            alpha=self.loss_cls.alpha,
            gamma=self.loss_cls.gamma,
            box_loss="giou" if isinstance(self.loss_bbox, GIoULoss) else "iou",
            box_loss_eps=self.loss_bbox.eps,
            normalizers=torch.stack((positives, centerness.clamp(min=1e-6), positives)),
        )
        parts = (self.loss_cls, self.loss_bbox, self.loss_centerness)
        names = ("loss_cls", "loss_bbox", "loss_centerness")
        return {
            name: part.loss_weight * loss
            for name, part, loss in zip(names, parts, losses.values(), strict=True)
        }

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        score_factors: list[Tensor] | None = None,
        batch_img_metas: Metas | None = None,
        cfg: Any = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """As FCOSHead: ``bboxes``, ``scores`` and ``labels`` of each image."""
        options = self.test_cfg if cfg is None else cfg
        if not with_nms or not _is_plain_nms(options) or score_factors is None or batch_img_metas is None:
            return super().predict_by_feat(
                cls_scores, bbox_preds, score_factors, batch_img_metas, cfg, rescale, with_nms
            )
        dtype = bbox_preds[0].dtype
        found = ops.postprocess(
            [x.detach().to(dtype) for x in cls_scores],
            [x.detach() for x in bbox_preds],  # the head has multiplied them by the strides
            [x.detach().to(dtype) for x in score_factors],
            self._levels(cls_scores),
            [meta["img_shape"][:2] for meta in batch_img_metas],
            units=[1] * len(cls_scores),
            score="product",
            score_threshold=options.get("score_thr", 0),
            topk_candidates=_candidates(options, cls_scores),
            topk_by="classification",
            iou_threshold=_iou_threshold(options),
            class_agnostic=options.nms.get("class_agnostic", False),
            max_detections=options.max_per_img,
            drop_empty=options.get("min_bbox_size", -1) == 0,
        )
        return _results(found, batch_img_metas, rescale)

    def _levels(self, maps: Sequence[Tensor]) -> list[Level]:
        offset = self.prior_generator.offset
        levels = []
        for x, (width, height), bounds in zip(
            maps, self.prior_generator.strides, self.regress_ranges, strict=True
        ):
            step, shift = (float(height), float(width)), (offset * height, offset * width)
            size_range = (float(bounds[0]), float(bounds[1]))
            levels.append(Level(x.shape[2], x.shape[3], float(width), step, shift, size_range))
        return levels


def _is_plain_nms(options: Any) -> bool:
    """Is this the postprocessing that ``ops.postprocess`` computes?"""
    nms = options.get("nms") or {}
    return (
        set(nms) <= {"type", "iou_threshold", "iou_thr", "class_agnostic"}
        and nms.get("type") == "nms"
        and options.get("min_bbox_size", -1) <= 0
        and options.get("max_per_img", -1) > 0
    )


def _candidates(options: Any, cls_scores: Sequence[Tensor]) -> int:
    """Candidates per level that go to NMS; all of them if ``nms_pre`` is not set."""
    nms_pre = options.get("nms_pre", -1)
    return nms_pre if nms_pre > 0 else max(x.shape[1:].numel() for x in cls_scores)


def _iou_threshold(options: Any) -> float:
    return options.nms.get("iou_threshold", options.nms.get("iou_thr"))


def _results(found: BatchDetections, metas: Metas, rescale: bool) -> list[InstanceData]:
    """The detections of each image, in pixels of the original image if ``rescale``."""
    results = []
    for detections, meta in zip(found.split(), metas, strict=True):
        boxes = detections["boxes"]
        if rescale:
            boxes = boxes * boxes.new_tensor([1 / s for s in meta["scale_factor"]]).repeat(2)
        results.append(
            InstanceData(bboxes=boxes, scores=detections["scores"], labels=detections["labels"].long())
        )
    return results


class AcceleratedRetinaHead(RetinaHead):
    """mmdetection's RetinaNet head: anchors matched by one operator, losses of the positives only, padded NMS."""

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        score_factors: list[Tensor] | None = None,
        batch_img_metas: Metas | None = None,
        cfg: Any = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """As RetinaHead: ``bboxes``, ``scores`` and ``labels`` of each image."""
        options = self.test_cfg if cfg is None else cfg
        plain = with_nms and _is_plain_nms(options) and not options.nms.get("class_agnostic", False)
        if not plain or score_factors is not None or batch_img_metas is None:
            return super().predict_by_feat(
                cls_scores, bbox_preds, score_factors, batch_img_metas, cfg, rescale, with_nms
            )
        sizes = [x.shape[-2:] for x in cls_scores]
        anchors = self.prior_generator.grid_priors(
            sizes, dtype=bbox_preds[0].dtype, device=cls_scores[0].device
        )
        found = postprocess_anchors(
            [by_anchor(x.detach(), self.cls_out_channels) for x in cls_scores],
            [by_anchor(x.detach(), 4) for x in bbox_preds],
            anchors,
            torch.tensor([meta["img_shape"][:2] for meta in batch_img_metas], device=cls_scores[0].device),
            score_threshold=options.get("score_thr", 0),
            topk_candidates=_candidates(options, cls_scores),
            iou_threshold=_iou_threshold(options),
            max_detections=options.max_per_img,
            drop_empty=options.get("min_bbox_size", -1) == 0,
            decode=self._decode,
        )
        return _results(found, batch_img_metas, rescale)

    def _decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (..., 4), which postprocessing clips to the image."""
        return get_box_tensor(self.bbox_coder.decode(anchors.flatten(0, -2), deltas.flatten(0, -2))).view_as(
            deltas
        )

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Metas,
        batch_gt_instances_ignore: Sequence[InstanceData] | None = None,
    ) -> dict[str, list[Tensor]]:
        """As AnchorHead: ``loss_cls`` and ``loss_bbox``, a scalar per level."""
        gt = ground_truth(batch_gt_instances)
        if len(gt.boxes) != sum(len(image) for image in batch_gt_instances):
            # MaxIoUAssigner lets a box without area claim every anchor that overlaps none
            return super().loss_by_feat(
                cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore
            )
        sizes = [x.shape[-2:] for x in cls_scores]
        by_level = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        anchors = torch.cat(by_level)  # (A, 4)
        labels, matched = self._match(anchors, sizes, gt, batch_img_metas)
        avg_factor = (labels >= 0).sum(dim=1).clamp(min=1).sum()
        losses: dict[str, list[Tensor]] = {"loss_cls": [], "loss_bbox": []}
        counts = [len(level) for level in by_level]
        targets = zip(labels.split(counts, 1), matched.split(counts, 1), strict=True)
        levels = zip(cls_scores, bbox_preds, by_level, targets, strict=True)
        for scores, deltas, priors, (own_labels, own_matched) in levels:
            losses["loss_cls"].append(self._classification(scores, own_labels, avg_factor))
            losses["loss_bbox"].append(
                self._box_loss(deltas, priors, gt.boxes, own_labels, own_matched, avg_factor)
            )
        return losses

    def _match(
        self, anchors: Tensor, sizes: Sequence[torch.Size], gt: GroundTruth, metas: Metas
    ) -> tuple[Tensor, Tensor]:
        """Labels and matched rows (B, A). Anchors outside an image are ignored and cannot be claimed."""
        assigner, border = self.assigner, self.train_cfg["allowed_border"]
        labels = torch.full((len(metas), len(anchors)), IGNORED, dtype=torch.int32, device=anchors.device)
        matched = labels.clone()
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, meta in enumerate(metas):
            key = (*meta["pad_shape"][:2], *(meta["img_shape"][:2] if border >= 0 else ()))
            groups.setdefault(key, []).append(index)
        for images in groups.values():
            meta = metas[images[0]]
            valid = torch.cat(self.prior_generator.valid_flags(sizes, meta["pad_shape"], anchors.device))
            inside = anchor_inside_flags(anchors, valid, meta["img_shape"][:2], border)
            rows = inside.nonzero()[:, 0]
            if len(rows) == 0:
                raise ValueError(
                    f"no anchor is inside the image of {meta['img_shape'][:2]} pixels; set allowed_border to -1"
                )
            spans = [(int(gt.starts[i]), int(gt.starts[i + 1])) for i in images]
            picked = torch.cat([torch.arange(a, b) for a, b in spans]).to(gt.boxes.device)
            packed = GroundTruth.pack([gt.boxes[a:b] for a, b in spans], [gt.labels[a:b] for a, b in spans])
            found = ops.match_anchors(
                anchors[rows],
                packed,
                high_threshold=assigner.pos_iou_thr,
                low_threshold=assigner.neg_iou_thr,
                low_quality="last_claim" if assigner.match_low_quality else "none",
                min_pos_iou=max(assigner.min_pos_iou, 0.0),
            )
            own = found.matched.long()
            if len(picked):
                own = torch.where(own >= 0, picked[own.clamp(min=0)], own)
            at = torch.tensor(images, device=anchors.device)[:, None]
            labels[at, rows] = found.labels
            matched[at, rows] = own.int()
        return labels, matched

    def _classification(self, scores: Tensor, labels: Tensor, avg_factor: Tensor) -> Tensor:
        """Focal loss of a level: logits (B, A * C, H, W), labels (B, H * W * A)."""
        loss = self.loss_cls
        total = sum_focal_loss(scores, labels, self.cls_out_channels, loss.alpha, loss.gamma)
        return loss.loss_weight * total / (avg_factor + torch.finfo(torch.float32).eps)

    def _box_loss(
        self,
        deltas: Tensor,
        priors: Tensor,
        boxes: Tensor,
        labels: Tensor,
        matched: Tensor,
        avg_factor: Tensor,
    ) -> Tensor:
        """The head's own loss of the positive anchors of a level: deltas (B, A * 4, H, W), labels (B, H * W * A)."""
        image, anchor = (labels >= 0).nonzero(as_tuple=True)
        predicted = by_anchor(deltas, 4)[image, anchor]
        own, target = priors[anchor], boxes[matched[image, anchor].long()]
        if self.reg_decoded_bbox:
            predicted = get_box_tensor(self.bbox_coder.decode(own, predicted))
        else:
            target = self.bbox_coder.encode(own, target)
        weight = torch.ones_like(target)
        if len(image) == 0:
            return predicted.sum() * 0
        return self.loss_bbox(predicted, target, weight, avg_factor=avg_factor)


def _overrides(module: nn.Module, kind: type[nn.Module], names: Sequence[str]) -> list[str]:
    """Methods that the class or the instance of ``module`` defines itself."""
    return [n for n in names if getattr(type(module), n) is not getattr(kind, n) or n in vars(module)]


def _is_focal(loss: nn.Module) -> bool:
    return isinstance(loss, FocalLoss) and type(loss).forward in (
        FocalLoss.forward,
        AcceleratedFocalLoss.forward,
    )


def why_not_fcos(head: FCOSHead) -> str:
    """What an accelerated FCOSHead would compute otherwise; "" if nothing."""
    targets = ("get_targets", "_get_targets_single", "centerness_target")
    detections = ("predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")
    if overridden := _overrides(head, FCOSHead, ("forward_single", "loss_by_feat", *targets, *detections)):
        return f"it overrides {', '.join(overridden)}"
    bce = head.loss_centerness
    plain = {
        "loss_cls": _is_focal(head.loss_cls) and not head.loss_cls.activated,
        "loss_bbox": type(head.loss_bbox) is GIoULoss
        or (type(head.loss_bbox) is IoULoss and head.loss_bbox.mode == "log"),
        "loss_centerness": type(bce) is CrossEntropyLoss and bce.use_sigmoid and bce.class_weight is None,
        "bbox_coder": type(head.bbox_coder) is DistancePointBBoxCoder and head.bbox_coder.clip_border,
        "prior_generator": type(head.prior_generator) is MlvlPointGenerator,
        "use_sigmoid_cls": head.use_sigmoid_cls,
    }
    if wrong := [name for name, is_plain in plain.items() if not is_plain]:
        return f"its {', '.join(wrong)} is not what FCOS has"
    reductions = {loss.reduction for loss in (head.loss_cls, head.loss_bbox, head.loss_centerness)}
    return "" if reductions == {"mean"} else "its losses are not reduced by the mean"


def why_not_retina(head: RetinaHead) -> str:
    """What an accelerated RetinaHead would compute otherwise; "" if nothing."""
    targets = ("get_targets", "_get_targets_single", "get_anchors")
    detections = ("predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")
    if overridden := _overrides(
        head, RetinaHead, ("loss_by_feat", "loss_by_feat_single", *targets, *detections)
    ):
        return f"it overrides {', '.join(overridden)}"
    if not head.train_cfg:
        return "it has no train_cfg"
    assigner = head.assigner
    plain = {
        "loss_cls": _is_focal(head.loss_cls)
        and not head.loss_cls.activated
        and head.loss_cls.reduction == "mean",
        "assigner": type(assigner) is MaxIoUAssigner
        and assigner.ignore_iof_thr <= 0
        and assigner.gt_max_assign_all
        and isinstance(assigner.neg_iou_thr, float)
        and assigner.neg_iou_thr <= assigner.pos_iou_thr
        and type(assigner.iou_calculator) is BboxOverlaps2D,
        "sampler": type(head.sampler) is PseudoSampler,
        "bbox_coder": type(head.bbox_coder) is DeltaXYWHBBoxCoder and head.bbox_coder.clip_border,
        "train_cfg.pos_weight": head.train_cfg["pos_weight"] <= 0,
        "use_sigmoid_cls": head.use_sigmoid_cls,
    }
    wrong = [name for name, is_plain in plain.items() if not is_plain]
    return f"its {', '.join(wrong)} is not what RetinaNet has" if wrong else ""


_HEADS: dict[type[nn.Module], tuple[type[nn.Module], Callable[[Any], str], str]] = {
    FCOSHead: (AcceleratedFCOSHead, why_not_fcos, "target assignment, losses and postprocessing"),
    RetinaHead: (AcceleratedRetinaHead, why_not_retina, "anchor matching, losses and postprocessing"),
}
"""Head to its accelerated class, the check of its settings, and what is fused."""


def replace_classes(model: nn.Module) -> tuple[Replaced, list[str]]:
    """Replace the classes of heads and focal losses of a detector of mmdetection.

    Returns:
        The modules with their previous classes, and a summary of each replacement. Heads with other settings or
        methods are left unchanged and named.

    Raises:
        TypeError: there is nothing to replace.
    """
    replaced: Replaced = []
    done = []
    for module in model.modules():
        for kind, (accelerated, why_not, fused) in _HEADS.items():
            if not isinstance(module, kind):
                continue
            name, reason = type(module).__name__, why_not(module)
            if reason:
                done.append(f"{name} unchanged ({reason})")
            else:
                replaced.append((module, type(module)))
                done.append(f"{name}: {fused} fused")
                module.__class__ = accelerated_class(accelerated, type(module))
    losses = [module for module in model.modules() if _is_focal(module)]
    for loss in losses:
        replaced.append((loss, type(loss)))
        loss.__class__ = accelerated_class(AcceleratedFocalLoss, type(loss))
    if losses:
        done.append(f"{len(losses)} FocalLoss")
    if not replaced:
        raise TypeError(
            f"accelerate: this {type(model).__name__} of mmdetection has no FCOSHead, RetinaHead or FocalLoss; nothing "
            "of it can be replaced"
        )
    return replaced, done
