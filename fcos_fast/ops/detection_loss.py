"""The classification, box and centerness losses of FCOS in one pass over the head's outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import Targets
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentTypeError, ArgumentValueError
from fcos_fast.ops._register import register_fake, reject_second_derivative, reject_transforms, sum_type
from fcos_fast.ops.box_loss import KINDS

QUALITIES = ("centerness", "iou")
MAX_LEVELS = 8
_OP = "detection_loss"
LOSSES = ("classification", "bbox_regression", "bbox_ctrness")


def detection_loss(
    cls_logits: Sequence[Tensor],
    box_regression: Sequence[Tensor],
    centerness: Sequence[Tensor],
    targets: Targets,
    *,
    units: Sequence[float],
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_loss: str = "giou",
    box_loss_smooth: float = 0.0,
    box_loss_eps: float = 1e-7,
    centerness_weighted: bool = True,
    quality: str = "centerness",
    normalizers: Tensor | None = None,
) -> dict[str, Tensor]:
    """Focal loss, box loss and centerness loss of a batch, directly from the feature maps of the head.

    The maps are neither permuted, concatenated nor gathered. float32, bfloat16 and float64 gradients are computed in
    the forward pass; backward returns them, rescaled only if the incoming gradient is not 1. float16 gradients are
    computed in backward, so that the factor of a gradient scaler is applied before rounding. Apart from the gradients,
    no memory of the size of the maps is allocated. The maps are saved for a second backward. Without positive locations
    the losses are finite and part of the graph. Nothing synchronizes with the device. If a loss has no incoming
    gradient, the gradients of its maps are None.

    Args:
        cls_logits: (B, C, H, W) per level, at most 8 levels. NCHW or channels-last (other strides are copied); float32,
            float64, bfloat16 or float16. Computed in float32 (float64 for float64 logits).
        box_regression: (B, 4, H, W) per level: ltrb distances in ``units``.
        centerness: (B, 1, H, W) per level: logits.
        targets: targets of all P = sum of H * W locations. ``IGNORED`` locations are skipped; box and centerness losses
            use the positive locations.
        units: pixels per unit of ``box_regression``, per level.
        alpha: weight of the positives, as in :func:`sigmoid_focal_loss`.
        gamma: focusing exponent, as in :func:`sigmoid_focal_loss`.
        box_loss: ``kind`` of :func:`fcos_fast.ops.box_loss`.
        box_loss_smooth: ``smooth`` of :func:`fcos_fast.ops.box_loss`.
        box_loss_eps: ``eps`` of :func:`fcos_fast.ops.box_loss`.
        centerness_weighted: weight each box loss with its target centerness, as in the official implementation.
        quality: the target of ``centerness`` in the binary cross-entropy: ``"centerness"`` of the location, or
            ``"iou"`` of the predicted and target box, without a gradient through it (AdelaiDet).
        normalizers: (3,) or (3, B) float32, on the device: divisors of the classification, box and centerness losses,
            for the batch or per image. Default: the number of positive locations, at least 1; for centerness-weighted
            box losses the sum of the weights, at least 1e-6. Both are from ``targets.totals``.

    Returns:
        ``{"classification", "bbox_regression", "bbox_ctrness"}``: float32 scalars (float64 for float64 logits), bitwise
        reproducible.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or value.
    """
    cls_logits, box_regression, centerness = list(cls_logits), list(box_regression), list(centerness)
    _check(cls_logits, box_regression, centerness, targets, units, normalizers)
    _checks.check_focal(_OP, alpha, gamma)
    _checks.check_choices(_OP, box_loss=(box_loss, KINDS), quality=(quality, QUALITIES))
    if not use_native(cls_logits[0], box_regression[0], centerness[0]):
        return reference.detection_loss(
            cls_logits,
            box_regression,
            centerness,
            targets,
            units=units,
            alpha=alpha,
            gamma=gamma,
            box_loss=box_loss,
            box_loss_smooth=box_loss_smooth,
            box_loss_eps=box_loss_eps,
            centerness_weighted=centerness_weighted,
            quality=quality,
            normalizers=normalizers,
        )
    reject_transforms(_OP)
    if normalizers is not None:
        normalizers = normalizers.reshape(3, -1).expand(3, cls_logits[0].shape[0]).contiguous()
    others = (
        targets.labels,
        targets.ltrb,
        targets.centerness,
        targets.totals,
        normalizers,
        [float(unit) for unit in units],
        float(alpha),
        float(gamma),
        box_loss,
        float(box_loss_smooth),
        float(box_loss_eps),
        centerness_weighted,
        quality == "iou",
    )
    maps = cls_logits + box_regression + centerness
    losses = _DetectionLoss.apply(len(cls_logits), others, _in_one_pass(maps), *maps)
    return dict(zip(LOSSES, losses, strict=True))


def _check(
    cls_logits: list[Tensor],
    box_regression: list[Tensor],
    centerness: list[Tensor],
    targets: Targets,
    units: Sequence[float],
    normalizers: Tensor | None,
) -> None:
    levels = len(cls_logits)
    if not levels or not len(box_regression) == len(centerness) == len(units) == levels:
        raise ArgumentValueError(
            f"{_OP}: got {levels} levels of cls_logits, {len(box_regression)} of box_regression, {len(centerness)} of "
            f"centerness and {len(units)} units; expected the same number, at least one"
        )
    if levels > MAX_LEVELS:
        raise ArgumentValueError(f"{_OP}: got {levels} levels; expected at most {MAX_LEVELS}")
    for unit in units:
        if not 0 < unit < math.inf:
            raise ArgumentValueError(f"{_OP}: units={tuple(units)}; expected positive numbers of pixels")
    named = {"cls_logits": cls_logits, "box_regression": box_regression, "centerness": centerness}
    _checks.check_same_device(
        _OP, **{f"{name}[{i}]": x for name, maps in named.items() for i, x in enumerate(maps)}
    )
    _checks.check_float(
        _OP, **{f"{name}[{i}]": x for name, maps in named.items() for i, x in enumerate(maps)}
    )
    if cls_logits[0].ndim != 4:
        raise ArgumentValueError(
            f"{_OP}: cls_logits[0] has shape {tuple(cls_logits[0].shape)}; expected (B, C, H, W)"
        )
    batch, classes = cls_logits[0].shape[:2]
    for (name, maps), channels in zip(named.items(), (classes, 4, 1), strict=True):
        for i, (x, logits) in enumerate(zip(maps, cls_logits, strict=True)):
            expected = (batch, channels, *logits.shape[2:])
            if x.shape != expected or x.ndim != 4:
                raise ArgumentValueError(
                    f"{_OP}: {name}[{i}] has shape {tuple(x.shape)}; expected {tuple(expected)}"
                )
            if x.dtype != maps[0].dtype:
                raise ArgumentTypeError(
                    f"{_OP}: {name}[{i}] has dtype {x.dtype} and {name}[0] {maps[0].dtype}; expected the same dtype"
                )
    _check_targets(targets, cls_logits)
    if normalizers is not None:
        _check_normalizers(normalizers, cls_logits[0])


def _check_targets(targets: Targets, cls_logits: list[Tensor]) -> None:
    batch, classes = cls_logits[0].shape[:2]
    locations = sum(x.shape[2] * x.shape[3] for x in cls_logits)
    expected = {
        "labels": (torch.int32, (batch, locations)),
        "ltrb": (torch.float32, (batch, locations, 4)),
        "centerness": (torch.float32, (batch, locations)),
        "totals": (torch.float32, (2,)),
    }
    tensors = {f"targets.{name}": getattr(targets, name) for name in expected}
    _checks.check_same_device(_OP, cls_logits=cls_logits[0], **tensors)
    for (name, tensor), (dtype, shape) in zip(tensors.items(), expected.values(), strict=True):
        if tensor.shape != shape:
            raise ArgumentValueError(
                f"{_OP}: {name} has shape {tuple(tensor.shape)}; expected {tuple(shape)} for these maps"
            )
        if tensor.dtype != dtype:
            raise ArgumentTypeError(f"{_OP}: {name} has dtype {tensor.dtype}; expected {dtype}")
    _checks.check_class_targets(_OP, "label", targets.labels, classes)


def _check_normalizers(normalizers: Tensor, logits: Tensor) -> None:
    _checks.check_same_device(_OP, cls_logits=logits, normalizers=normalizers)
    if normalizers.dtype != torch.float32 or normalizers.shape not in ((3,), (3, logits.shape[0])):
        raise ArgumentValueError(
            f"{_OP}: normalizers has dtype {normalizers.dtype} and shape {tuple(normalizers.shape)}; expected "
            f"float32 of shape (3,) or {(3, logits.shape[0])}"
        )
    if normalizers.requires_grad:
        raise ArgumentValueError(
            f"{_OP}: normalizers require a gradient, which is not supported; pass normalizers.detach()"
        )


def _in_one_pass(maps: list[Tensor]) -> bool:
    """Whether to compute gradients in forward. Not in traced graphs (no mutable state) and float16 (scaled first)."""
    return (
        torch.is_grad_enabled()
        and any(x.requires_grad for x in maps)
        and all(x.dtype != torch.float16 for x in maps)
        and not torch.compiler.is_compiling()
    )


class _DetectionLoss(torch.autograd.Function):
    """The three losses of ``levels`` x 3 maps. ``register_autograd`` would cost a third of a millisecond per call."""

    @staticmethod
    def forward(
        ctx: Any, levels: int, others: tuple[Any, ...], with_grad: bool, *maps: Tensor
    ) -> tuple[Tensor, ...]:
        losses, *grads = torch.ops.fcos_fast.detection_loss(*_by_part(maps, levels), *others, with_grad)
        targets, ctx.numbers = others[:_TENSORS], others[_TENSORS:]
        ctx.levels = levels
        ctx.save_for_backward(*targets, *maps)
        ctx.set_materialize_grads(False)
        ctx.unit_grads = grads if with_grad else None
        return losses.unbind()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        flows = [factor is not None for factor in upstream]
        if not any(flows):
            return None, None, None, *(None,) * (3 * ctx.levels)
        zero = next(factor for factor in upstream if factor is not None).new_zeros(())
        factors = torch.stack([zero if factor is None else factor for factor in upstream])
        # The first backward returns the stored gradients, rescaled in place if necessary. A second backward recomputes
        # them, as does double backward (whose operator then raises).
        grads, ctx.unit_grads = ctx.unit_grads, None
        if grads is not None and not torch.is_grad_enabled():
            flowing = [part if flow else [] for part, flow in zip(grads, flows, strict=True)]
            torch.ops.fcos_fast.detection_loss_rescale_(*flowing, factors)
        else:
            targets, maps = ctx.saved_tensors[:_TENSORS], ctx.saved_tensors[_TENSORS:]
            parts = _by_part(maps, ctx.levels)
            grads = torch.ops.fcos_fast.detection_loss_backward(factors, *parts, *targets, *ctx.numbers)
        # None, not 0, for the maps of a loss without an incoming gradient: optimizers skip parameters with None.
        return (
            *(None, None, None),
            *(x if flow else None for part, flow in zip(grads, flows, strict=True) for x in part),
        )


_TENSORS = 5  # labels, ltrb, quality, totals, normalizers


def _by_part(maps: Sequence[Tensor], levels: int) -> list[list[Tensor]]:
    return [list(maps[i * levels : (i + 1) * levels]) for i in range(3)]


if cpu_error is None:

    @register_fake("detection_loss")
    def _fake(
        cls_logits: list[Tensor], box_regression: list[Tensor], centerness: list[Tensor], *others: Any
    ) -> tuple[Tensor | list[Tensor], ...]:
        losses = cls_logits[0].new_empty((3,), dtype=sum_type(cls_logits[0].dtype))
        maps = (cls_logits, box_regression, centerness)
        return losses, *([torch.empty_like(x) for x in part] if others[-1] else [] for part in maps)

    @register_fake("detection_loss_backward")
    def _fake_backward(
        upstream: Tensor,
        cls_logits: list[Tensor],
        box_regression: list[Tensor],
        centerness: list[Tensor],
        *others: Any,
    ) -> tuple[list[Tensor], ...]:
        return tuple([torch.empty_like(x) for x in part] for part in (cls_logits, box_regression, centerness))

    @register_fake("detection_loss_rescale_")
    def _fake_rescale(*arguments: Any) -> None:
        return None

    reject_second_derivative("detection_loss_backward")
