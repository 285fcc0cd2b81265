"""From a head's outputs to detections."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Threshold, top-k, decoding, clipping and exact greedy NMS for a whole batch.

    With ``threshold_on="score"`` it gives what torchvision's ``FCOS.postprocess_detections`` does, in the same order;
    the other published rules are choices below. The results are of fixed size and the host never waits for a GPU, so a
    CUDA graph can hold the call (with ``sizes`` as a tensor).

    Args:
        cls_logits: (B, C, H, W) per level, contiguous or channels-last, used without a copy; float32, float64, bfloat16
            or float16, computed in float32 (float64).
        box_regression: (B, 4, H, W) per level: distances left, top, right, bottom, in units.
        centerness: (B, 1, H, W) per level, logits. None where ``score`` is ``"classification"``.
        levels: where the locations stand; their height and width are those of the maps.
        sizes: (height, width) of each image in pixels, without padding, to which boxes are clipped: a sequence, or a
            (B, 2) tensor on the device of the maps.
        units: pixels per unit of ``box_regression``, per level.
        score: ``"sqrt"`` sqrt(classification * centerness) (official), ``"product"`` without the root (mmdetection), or
            ``"classification"``, both being sigmoids.
        score_threshold: in [0, 1]; candidates are above it.
        threshold_on: what must be above it: the ``"classification"`` or the ``"score"``.
        multi_label: every (location, class) pair is a candidate; else of each location only the class of the greatest
            logit.
        topk_candidates: as many candidates go to NMS.
        topk_over: of each ``"level"`` of an image, or of the whole ``"image"``.
        topk_by: those of the highest ``"score"``, or of the highest ``"classification"`` (mmdetection).
        iou_threshold: a box falls when its IoU with a better one of its class is greater. In [0, 1].
        class_agnostic: a better box of any class lets it fall.
        max_detections: D, detections per image.
        inclusive_boxes: x2 and y2 name the last pixel inside: boxes are clipped to width - 1 and height - 1, and NMS
            adds 1 to widths and heights.
        clip: whether NMS compares boxes that are clipped, ``"before_nms"``, or as they were decoded, so that those kept
            are clipped ``"after_nms"``.
        drop_empty: drop candidates whose box, as NMS compares it, has no width or no height, after the top-k and before
            NMS, so that they suppress nothing and take no place among the ``max_detections`` (mmdetection's
            ``min_bbox_size=0``). By default such boxes are detections like any other, as in torchvision.

    Returns:
        :class:`fcos_fast.detections.BatchDetections`: boxes (B, D, 4), scores (B, D), labels (B, D) and counts (B,);
        ``.split()`` cuts them into one dict per image. Of equal scores the first level, location, class comes first. A
        candidate whose score is NaN is none.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or number, or an unknown choice.
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
        raise ArgumentTypeError(f"{op}: centerness is None; score={score!r} needs it, one map per level")
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
        raise ArgumentValueError(f"{op}: got {given}; expected one of each per level, of at least one level")
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
                    f"{op}: {name}[{i}] has shape {tuple(x.shape)}; expected {wanted}: images, channels, and height "
                    f"and width of levels[{i}]"
                )
            if x.dtype != maps[0].dtype or x.device != first.device:
                raise ArgumentTypeError(
                    f"{op}: {name}[{i}] is {x.dtype} on {x.device}; expected {maps[0].dtype} on {first.device}, as the "
                    "first level has it"
                )


def _sizes_on(op: str, like: Tensor, sizes: Tensor | Sequence[tuple[int, int]]) -> Tensor:
    """(B, 2) on the device of ``like``, without waiting for it."""
    if not isinstance(sizes, Tensor):
        if like.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
            # A replay would read the host memory of the copy again, which not every torch keeps for it.
            raise ArgumentValueError(
                f"{op}: sizes is a sequence and a CUDA graph is being captured; pass a (B, 2) tensor on {like.device}, "
                "made before the capture"
            )
        sizes = torch.tensor(sizes).reshape(-1, 2)
        if like.is_cuda and not torch.compiler.is_compiling():
            sizes = sizes.pin_memory()
        sizes = sizes.to(like.device, non_blocking=True)
    elif sizes.device != like.device:
        raise ArgumentValueError(
            f"{op}: sizes is on {sizes.device} and cls_logits on {like.device}; move one of them"
        )
    if sizes.shape != (like.shape[0], 2):
        raise ArgumentValueError(
            f"{op}: sizes has shape {tuple(sizes.shape)}; expected {(like.shape[0], 2)}, height and width per image"
        )
    return sizes


if cpu_error is None:

    @register_fake("postprocess")
    def _fake_postprocess(cls_logits, *rest):
        max_detections = rest[-4]
        batch, dtype = cls_logits[0].shape[0], sum_type(cls_logits[0].dtype)
        return (
            cls_logits[0].new_empty((batch, max_detections, 4), dtype=dtype),
            cls_logits[0].new_empty((batch, max_detections), dtype=dtype),
            cls_logits[0].new_empty((batch, max_detections), dtype=torch.int64),
            cls_logits[0].new_empty((batch,), dtype=torch.int64),
        )
