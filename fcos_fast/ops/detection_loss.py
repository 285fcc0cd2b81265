"""The classification, box and centerness loss of FCOS in one pass over the head's outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import Targets
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentTypeError, ArgumentValueError
from fcos_fast.ops._register import refuse_second_derivative, refuse_transforms, register_fake, sum_type
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
    """Losses of a batch from the maps as they lie in memory: nothing is permuted, concatenated or gathered.

    Float32, bfloat16 and float64 gradients are computed in the forward pass and are final; backward returns them, and
    multiplies them only where something else than 1 flows in. float16 gradients are computed in backward, so that the
    factor of a gradient scaler is applied before they are rounded. Beside the gradients no memory of the size of the
    maps is used; the maps themselves are kept for a second backward. Without a positive location the losses are finite
    and keep their graph; nothing waits for the device. The maps of a loss that no gradient flows into get None.

    Args:
        cls_logits, box_regression, centerness: per level (B, C, H, W), (B, 4, H, W), (B, 1, H, W), NCHW or
            channels-last (other strides are copied), float32, float64, bfloat16 or float16; boxes as ltrb distances in
            ``units``. At most 8 levels. Computed in float32 (float64 for float64 logits).
        targets: for all levels, P = sum of H * W. ``IGNORED`` locations take no part; boxes and centerness count the
            positive ones.
        units: pixels per unit of ``box_regression``, per level.
        alpha, gamma: of :func:`sigmoid_focal_loss`.
        box_loss, box_loss_smooth, box_loss_eps: ``kind``, ``smooth`` and ``eps`` of :func:`fcos_fast.ops.box_loss`.
        centerness_weighted: multiply each box's loss by its target centerness, as the paper's authors do.
        quality: what ``centerness`` is to predict, by binary cross-entropy: the ``"centerness"`` of the location, or
            the ``"iou"`` of the predicted with the target box, a constant to the gradient (AdelaiDet).
        normalizers: (3,) or (3, B) float32 on the device: what the classification, box and centerness losses of the
            batch, or of each image, are divided by. By default the number of positive locations n, at least 1, and for
            centerness-weighted boxes the sum of the weights, at least 1e-6, both from ``targets.totals``.

    Returns:
        ``{"classification", "bbox_regression", "bbox_ctrness"}``, float32 scalars (float64 for float64 logits), the
        same bits each run.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or value.
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
    refuse_transforms(_OP)
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


def _check(cls_logits, box_regression, centerness, targets, units, normalizers) -> None:
    levels = len(cls_logits)
    if not levels or not len(box_regression) == len(centerness) == len(units) == levels:
        raise ArgumentValueError(
            f"{_OP}: got {levels} levels of cls_logits, {len(box_regression)} of box_regression, {len(centerness)} of "
            f"centerness and {len(units)} units; expected the same number, at least one"
        )
    if levels > MAX_LEVELS:
        raise ArgumentValueError(f"{_OP}: {levels} levels; expected at most {MAX_LEVELS}")
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
                    f"{_OP}: {name}[{i}] has dtype {x.dtype} and {name}[0] {maps[0].dtype}; must be equal"
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
                f"{_OP}: {name} has shape {tuple(tensor.shape)}; for these maps expected {tuple(shape)}"
            )
        if tensor.dtype != dtype:
            raise ArgumentTypeError(f"{_OP}: {name} has dtype {tensor.dtype}; expected {dtype}")
    _checks.check_class_targets(_OP, "label", targets.labels, classes)


def _check_normalizers(normalizers: Tensor, logits: Tensor) -> None:
    _checks.check_same_device(_OP, cls_logits=logits, normalizers=normalizers)
    if normalizers.dtype != torch.float32 or normalizers.shape not in ((3,), (3, logits.shape[0])):
        raise ArgumentValueError(
            f"{_OP}: normalizers have dtype {normalizers.dtype} and shape {tuple(normalizers.shape)}; expected "
            f"float32 of shape (3,) or {(3, logits.shape[0])}"
        )
    if normalizers.requires_grad:
        raise ArgumentValueError(
            f"{_OP}: normalizers require a gradient, which only maps get; pass normalizers.detach()"
        )


def _in_one_pass(maps: list[Tensor]) -> bool:
    """Shall forward compute the gradients? A traced graph cannot give buffers away, float16 needs its scale first."""
    return (
        torch.is_grad_enabled()
        and any(x.requires_grad for x in maps)
        and all(x.dtype != torch.float16 for x in maps)
        and not torch.compiler.is_compiling()
    )


class _DetectionLoss(torch.autograd.Function):
    """Three losses of ``levels`` x 3 maps. Not registered with the operator: that costs a third of a millisecond."""

    @staticmethod
    def forward(ctx, levels: int, others: tuple, with_grad: bool, *maps: Tensor) -> tuple[Tensor, ...]:
        losses, *grads = torch.ops.fcos_fast.detection_loss(*_by_part(maps, levels), *others, with_grad)
        targets, ctx.numbers = others[:_TENSORS], others[_TENSORS:]
        ctx.levels = levels
        ctx.save_for_backward(*targets, *maps)
        ctx.set_materialize_grads(False)
        ctx.unit_grads = grads if with_grad else None
        return losses.unbind()

    @staticmethod
    def backward(ctx, *upstream: Tensor | None):
        flows = [factor is not None for factor in upstream]
        if not any(flows):
            return None, None, None, *(None,) * (3 * ctx.levels)
        zero = next(factor for factor in upstream if factor is not None).new_zeros(())
        factors = torch.stack([zero if factor is None else factor for factor in upstream])
        # The first backward gives the stored gradients away, rescaled where they have to be. A second one, and one that
        # is to be differentiated itself (which is refused there), computes them again.
        grads, ctx.unit_grads = ctx.unit_grads, None
        if grads is not None and not torch.is_grad_enabled():
            flowing = [part if flow else [] for part, flow in zip(grads, flows, strict=True)]
            torch.ops.fcos_fast.detection_loss_rescale_(*flowing, factors)
        else:
            targets, maps = ctx.saved_tensors[:_TENSORS], ctx.saved_tensors[_TENSORS:]
            parts = _by_part(maps, ctx.levels)
            grads = torch.ops.fcos_fast.detection_loss_backward(factors, *parts, *targets, *ctx.numbers)
        # None, not 0, for the maps of a loss that nothing flows into: an optimizer then leaves their layers alone.
        return (
            *(None, None, None),
            *(x if flow else None for part, flow in zip(grads, flows, strict=True) for x in part),
        )


_TENSORS = 5  # labels, ltrb, quality, totals, normalizers


def _by_part(maps: Sequence[Tensor], levels: int) -> list[list[Tensor]]:
    return [list(maps[i * levels : (i + 1) * levels]) for i in range(3)]


if cpu_error is None:

    @register_fake("detection_loss")
    def _fake(cls_logits, box_regression, centerness, *others):
        losses = cls_logits[0].new_empty((3,), dtype=sum_type(cls_logits[0].dtype))
        maps = (cls_logits, box_regression, centerness)
        return losses, *([torch.empty_like(x) for x in part] if others[-1] else [] for part in maps)

    @register_fake("detection_loss_backward")
    def _fake_backward(upstream, cls_logits, box_regression, centerness, *others):
        return tuple([torch.empty_like(x) for x in part] for part in (cls_logits, box_regression, centerness))

    @register_fake("detection_loss_rescale_")
    def _fake_rescale(cls_grads, box_grads, centerness_grads, upstream):
        return None

    refuse_second_derivative("detection_loss_backward")
