"""Post-processing: from head outputs to detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import Level
from fcos_fast.detections import BatchDetections
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentTypeError, ArgumentValueError
from fcos_fast.ops._register import register_fake, sum_type

SCORES = ("sqrt", "product", "classification")
THRESHOLDS = ("classification", "score")
TOPK_OVER = ("level", "image")
TOPK_BY = ("score", "classification")
CLIPS = ("before_nms", "after_nms")


def postprocess(
    cls_logits: Sequence[Tensor],
    box_regression: Sequence[Tensor],
    centerness: Sequence[Tensor] | None,
    levels: Sequence[Level],
    sizes: Tensor | Sequence[tuple[int, int]],
    *,
    units: Sequence[float],
    score: str = "sqrt",
    score_threshold: float = 0.05,
    threshold_on: str = "classification",
    multi_label: bool = True,
    topk_candidates: int = 1000,
    topk_over: str = "level",
    topk_by: str = "score",
    iou_threshold: float = 0.6,
    class_agnostic: bool = False,
    max_detections: int = 100,
    inclusive_boxes: bool = False,
    clip: str = "before_nms",
    drop_empty: bool = False,
) -> BatchDetections:
    """Score threshold, top-k, box decoding, clipping and exact greedy NMS for a whole batch.

    With ``threshold_on="score"`` the result is that of torchvision's ``FCOS.postprocess_detections``, in the same
    order; the options below cover the other published rules. The results have a fixed size and nothing synchronizes,
    so the call can be captured in a CUDA graph (with ``sizes`` as a tensor).

    Args:
        cls_logits: (B, C, H, W) per level, contiguous or channels-last, used without a copy; float32, float64, bfloat16
            or float16, computed in float32 (float64).
        box_regression: (B, 4, H, W) per level: ltrb distances in ``units``.
        centerness: (B, 1, H, W) per level: logits. Not used, and may be None, if ``score`` is ``"classification"``.
        levels: the levels of the feature pyramid, with the height and width of the maps.
        sizes: (height, width) of each image in pixels, without padding; boxes are clipped to it. A sequence, or a
            (B, 2) tensor on the device of the maps.
        units: pixels per unit of ``box_regression``, per level.
        score: ``"sqrt"`` for sqrt(classification * centerness) (official), ``"product"`` for their product
            (mmdetection), or ``"classification"``, where both are sigmoid probabilities.
        score_threshold: in [0, 1]; candidates must be above it.
        threshold_on: which value must be above the threshold: ``"classification"`` or ``"score"``.
        multi_label: every (location, class) pair can be a candidate; otherwise only the class with the greatest logit
            at each location.
        topk_candidates: maximum number of candidates before NMS.
        topk_over: scope of the top-k: each ``"level"`` of an image, or the whole ``"image"``.
        topk_by: the value compared in the top-k: ``"score"`` or ``"classification"`` (mmdetection).
        iou_threshold: in [0, 1]; a box is suppressed if its IoU with a higher-scoring box of its class is greater.
        class_agnostic: boxes also suppress boxes of other classes.
        max_detections: D, the maximum number of detections per image.
        inclusive_boxes: x2 and y2 are the last pixels inside the box: boxes are clipped to width - 1 and height - 1,
            and NMS adds 1 to widths and heights.
        clip: clip boxes ``"before_nms"`` or ``"after_nms"``.
        drop_empty: drop candidates whose box (in NMS coordinates) has zero width or height, after the top-k and before
            NMS, as mmdetection does with ``min_bbox_size=0``. By default they are kept, as in torchvision.

    Returns:
        :class:`fcos_fast.detections.BatchDetections`: boxes (B, D, 4), scores (B, D), labels (B, D) and counts (B,);
        ``.split()`` returns one dict per image. Equal scores are in (level, location, class) order. Candidates with a
        NaN score are dropped.

    Raises:
        TypeError: wrong dtype, or no centerness although the score requires it.
        ValueError: wrong shape, device or number, or an unknown option.
    """
    op = "postprocess"
    _checks.check_choices(
        op,
        score=(score, SCORES),
        threshold_on=(threshold_on, THRESHOLDS),
        topk_over=(topk_over, TOPK_OVER),
        topk_by=(topk_by, TOPK_BY),
        clip=(clip, CLIPS),
    )
    _checks.check_unit_interval(op, score_threshold=score_threshold, iou_threshold=iou_threshold)
    _checks.check_positive(op, topk_candidates=topk_candidates, max_detections=max_detections)
    if score == "classification":
        centerness = None
    elif centerness is None:
        raise ArgumentTypeError(f"{op}: centerness is None; score={score!r} requires one map per level")
    _check_maps(op, cls_logits, box_regression, centerness, levels, units)
    sizes = _sizes_on(op, cls_logits[0], sizes)
    if not use_native(cls_logits[0], box_regression[0]):
        return reference.postprocess(
            cls_logits,
            box_regression,
            centerness,
            levels,
            sizes,
            units=units,
            score=score,
            score_threshold=score_threshold,
            threshold_on=threshold_on,
            multi_label=multi_label,
            topk_candidates=topk_candidates,
            topk_over=topk_over,
            topk_by=topk_by,
            iou_threshold=iou_threshold,
            class_agnostic=class_agnostic,
            max_detections=max_detections,
            inclusive_boxes=inclusive_boxes,
            clip=clip,
            drop_empty=drop_empty,
        )
    geometry = [
        float(number)
        for level, unit in zip(levels, units, strict=True)
        for number in (*level.step, *level.offset, unit)
    ]
    return BatchDetections(
        *torch.ops.fcos_fast.postprocess(
            *([x.detach() for x in maps or ()] for maps in (cls_logits, box_regression, centerness)),
            sizes,
            geometry,
            score,
            float(score_threshold),
            threshold_on == "score",
            multi_label,
            topk_candidates,
            topk_over == "level",
            topk_by == "classification",
            float(iou_threshold),
            class_agnostic,
            max_detections,
            inclusive_boxes,
            clip == "before_nms",
            bool(drop_empty),
        )
    )


def _check_maps(
    op: str,
    cls_logits: Sequence[Tensor],
    box_regression: Sequence[Tensor],
    centerness: Sequence[Tensor] | None,
    levels: Sequence[Level],
    units: Sequence[float],
) -> None:
    names = {"cls_logits": cls_logits, "box_regression": box_regression, "centerness": centerness}
    lengths = {name: len(maps) for name, maps in names.items() if maps is not None}
    lengths |= {"levels": len(levels), "units": len(units)}
    if len(set(lengths.values())) > 1 or len(levels) == 0:
        given = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ArgumentValueError(f"{op}: got {given}; expected the same number of each, at least one")
    first = cls_logits[0]
    if first.ndim != 4:
        raise ArgumentValueError(f"{op}: cls_logits[0] has shape {tuple(first.shape)}; expected (B, C, H, W)")
    batch, classes = first.shape[:2]
    for (name, maps), channels in zip(names.items(), (classes, 4, 1), strict=True):
        if maps is None:
            continue
        _checks.check_same_device(op, **{"cls_logits[0]": first, f"{name}[0]": maps[0]})
        _checks.check_float(op, **{f"{name}[0]": maps[0]})
        for i, (x, level) in enumerate(zip(maps, levels, strict=True)):
            wanted = (batch, channels, level.height, level.width)
            if x.shape != wanted:
                raise ArgumentValueError(
                    f"{op}: {name}[{i}] has shape {tuple(x.shape)}; expected {wanted}: batch, channels, and the height "
                    f"and width of levels[{i}]"
                )
            if x.dtype != maps[0].dtype or x.device != first.device:
                raise ArgumentTypeError(
                    f"{op}: {name}[{i}] is {x.dtype} on {x.device}; expected {maps[0].dtype} on {first.device}, like "
                    "the first level"
                )


def _sizes_on(op: str, like: Tensor, sizes: Tensor | Sequence[tuple[int, int]]) -> Tensor:
    """Convert to a (B, 2) tensor on the device of ``like`` without synchronization."""
    if not isinstance(sizes, Tensor):
        if like.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
            # A replay would read the host memory of this copy again, which some torch versions release.
            raise ArgumentValueError(
                f"{op}: sizes is a sequence, which cannot be captured in a CUDA graph; pass a (B, 2) tensor on "
                f"{like.device} that is created before the capture"
            )
        sizes = torch.tensor(sizes).reshape(-1, 2)
        if like.is_cuda and not torch.compiler.is_compiling():
            sizes = sizes.pin_memory()
        sizes = sizes.to(like.device, non_blocking=True)
    elif sizes.device != like.device:
        raise ArgumentValueError(
            f"{op}: sizes is on {sizes.device} and cls_logits on {like.device}; expected the same device"
        )
    if sizes.shape != (like.shape[0], 2):
        raise ArgumentValueError(
            f"{op}: sizes has shape {tuple(sizes.shape)}; expected {(like.shape[0], 2)}, height and width per image"
        )
    return sizes


if cpu_error is None:

    @register_fake("postprocess")
    def _fake_postprocess(cls_logits: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
        max_detections = rest[-4]
        batch, dtype = cls_logits[0].shape[0], sum_type(cls_logits[0].dtype)
        return (
            cls_logits[0].new_empty((batch, max_detections, 4), dtype=dtype),
            cls_logits[0].new_empty((batch, max_detections), dtype=dtype),
            cls_logits[0].new_empty((batch, max_detections), dtype=torch.int64),
            cls_logits[0].new_empty((batch,), dtype=torch.int64),
        )
