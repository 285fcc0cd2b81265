"""mmdetection without a compiled mmcv: :func:`provide_ops` offers the operators that its detectors need.

``python -m fcos_fast.integrations.mmcv tools/train.py CONFIG ...`` runs a script of mmdetection with them.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fcos_fast import ops

EXTENSION = "mmcv._ext"


def provide_ops() -> None:
    """Provide ``mmcv._ext``, the extension that mmcv-lite lacks, so that mmdetection's detectors build and train.

    Call it before ``mmcv.ops`` or ``mmdet.models`` are imported. It prints one line. A compiled ``mmcv._ext`` is
    never replaced, and a second call does nothing.

    Native on CPU and CUDA: ``nms`` and ``sigmoid_focal_loss``. In plain PyTorch: ``softnms`` and ``nms_match``. By
    torchvision: ``roi_align`` (average pooling), ``deform_conv`` and ``modulated_deform_conv``. Every other operator of
    mmcv raises RuntimeError when it is called; modules that use it import.

    Raises:
        ImportError: mmcv is not installed.
    """
    try:
        importlib.import_module("mmcv")
    except ImportError as error:
        raise ImportError(
            "provide_ops: mmcv is not installed; pip install 'mmcv-lite==2.1.0' 'mmengine==0.10.7' 'mmdet==3.3.0'"
        ) from error
    try:
        present = importlib.import_module(EXTENSION)
    except ImportError:
        module = _make_extension()
        sys.modules[EXTENSION] = module
        sys.modules["mmcv"]._ext = module  # type: ignore[attr-defined]
        print(
            f"fcos_fast.provide_ops: {EXTENSION} offers {', '.join(_offered())}; other operators of mmcv raise"
        )
        return
    if not isinstance(present, _Extension):
        print(f"fcos_fast.provide_ops: mmcv is compiled ({present.__file__}), nothing to provide")


class _Extension(ModuleType):
    """``mmcv._ext``; mmcv looks up every operator at import, so unknown ones are functions that raise."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def unavailable(*args: object, **kwargs: object) -> None:
            raise RuntimeError(
                f"{EXTENSION}.{name} is not provided by fcos_fast, which offers {', '.join(_offered())}; install a "
                "compiled mmcv for this model"
            )

        return unavailable


def _offered() -> list[str]:
    names = [name.removesuffix("_forward") for name in _OPERATORS]
    return [name for name in names if "backward" not in name]


def _make_extension() -> _Extension:
    module = _Extension(EXTENSION, "Operators of mmcv, provided by fcos_fast.")
    module.__spec__ = ModuleSpec(EXTENSION, loader=None, origin="fcos_fast")
    module.__file__ = __file__
    for name, function in _OPERATORS.items():
        setattr(module, name, function)
    return module


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Kept indices, best score first. With ``offset`` 1, x2 and y2 are the last pixels inside."""
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return ops.nms(boxes, scores, iou_threshold)


def _iou(box: Tensor, boxes: Tensor, offset: int = 0) -> Tensor:
    """IoU of one box (4,) with each of (N, 4), in mmcv's arithmetic."""
    sides = boxes[:, 2:] - boxes[:, :2] + offset
    side = box[2:] - box[:2] + offset
    overlap = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2]) + offset).clamp(
        min=0
    )
    intersection = overlap.prod(dim=1)
    return intersection / (side.prod() + sides.prod(dim=1) - intersection)


def _soft_nms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., 2017); methods 0 naive, 1 linear, 2 Gaussian. Writes (box, score) rows into ``dets``."""
    remaining = torch.arange(len(boxes))
    scores = scores.clone()
    kept: list[int] = []
    while len(remaining) > 0:
        best = int(scores[remaining].argmax())
        index = int(remaining[best])
        dets[len(kept), :4], dets[len(kept), 4] = boxes[index], scores[index]
        kept.append(index)
        remaining = torch.cat((remaining[:best], remaining[best + 1 :]))
        iou = _iou(boxes[index], boxes[remaining], offset)
        if method == 2:
            decay = torch.exp(-(iou * iou) / sigma)
        else:
            decay = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), 1.0)
        scores[remaining] *= decay
        remaining = remaining[scores[remaining] >= min_score]
    return torch.tensor(kept, dtype=torch.int64)


def _nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of rows of ``dets`` (N, 5): each kept box, followed by the boxes that it suppresses."""
    remaining = dets[:, 4].argsort(descending=True, stable=True)
    groups = []
    while len(remaining) > 0:
        first, rest = remaining[0], remaining[1:]
        suppressed = _iou(dets[first, :4], dets[rest, :4]) >= iou_threshold
        groups.append([int(first), *rest[suppressed].tolist()])
        remaining = rest[~suppressed]
    return groups


def _focal_classes(input: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Class targets with background -1, and the weight of each row (1 for background) or None."""
    classes = input.shape[1]
    is_object = (target >= 0) & (target < classes)
    if weight.numel() == 0:
        return torch.where(is_object, target, -1), None
    rows = torch.where(is_object, weight[target.clamp(0, classes - 1)], 1)
    return torch.where(is_object, target, -1), rows[:, None]


def _sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Unreduced losses (N, C) into ``output``; ``target`` (N,) is C for background; ``weight`` (C,) or empty."""
    classes, rows = _focal_classes(input, target, weight)
    losses = ops.sigmoid_focal_loss(input, classes, alpha, gamma)
    output.copy_(losses if rows is None else losses * rows)


def _sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The gradient of the summed loss into ``grad_input``."""
    classes, rows = _focal_classes(input, target, weight)
    with torch.enable_grad():
        logits = input.detach().requires_grad_()
        loss = ops.sigmoid_focal_loss(logits, classes, alpha, gamma, "sum")
        (gradient,) = torch.autograd.grad(loss, logits)
    grad_input.copy_(gradient if rows is None else gradient * rows)


def _roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    import torchvision

    if pool_mode == 0:
        raise RuntimeError(
            f"{EXTENSION}.roi_align_forward: pool_mode 'max' is not provided by fcos_fast; use 'avg' or install a "
            "compiled mmcv"
        )
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))


def _roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    import torchvision

    size = (aligned_height, aligned_width)

    def pooled(x: Tensor) -> Tensor:
        return torchvision.ops.roi_align(x, rois, size, spatial_scale, sampling_ratio, aligned)

    # roi_align is linear in its input, so the gradient does not depend on the values of the input
    _write_gradients(pooled, [torch.zeros_like(grad_input)], grad_output, [grad_input])


def _write_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor, outputs: Sequence[Tensor]
) -> None:
    """The gradients of ``function(*inputs)`` into ``outputs``."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        gradients = torch.autograd.grad(function(*leaves), leaves, grad_output)
    for output, gradient in zip(outputs, gradients, strict=True):
        output.copy_(gradient)


def _deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """torchvision's operator, whose order of offsets (y, x) is mmcv's; it reads both kinds of groups off the shapes."""
    import torchvision

    expected = (input.shape[1] // groups, 2 * deform_groups * weight.shape[2] * weight.shape[3])
    if (weight.shape[1], offset.shape[1]) != expected:
        raise RuntimeError(
            f"{EXTENSION}: deformable convolution with weight {tuple(weight.shape)} and offset {tuple(offset.shape)}; "
            f"expected {expected[0]} channels of weight and {expected[1]} of offset"
        )
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)


def _plain_options(options: dict[str, int]) -> dict[str, Any]:
    """mmcv's keywords of deformable convolutions."""
    return {
        "stride": (options["dH"], options["dW"]),
        "padding": (options["padH"], options["padW"]),
        "dilation": (options["dilationH"], options["dilationW"]),
        "groups": options["group"],
        "deform_groups": options["deformable_group"],
    }


def _modulated_options(options: dict[str, int]) -> dict[str, Any]:
    """mmcv's keywords of modulated deformable convolutions."""
    return {
        "stride": (options["stride_h"], options["stride_w"]),
        "padding": (options["pad_h"], options["pad_w"]),
        "dilation": (options["dilation_h"], options["dilation_w"]),
        "groups": options["group"],
        "deform_groups": options["deformable_group"],
    }


def _deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **options: int,
) -> None:
    output.copy_(_deform_conv2d(input, offset, weight, **_plain_options(options)))


def _deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options: int,
) -> None:
    def output(x: Tensor, moved: Tensor) -> Tensor:
        return _deform_conv2d(x, moved, weight, **_plain_options(options))

    _write_gradients(output, [input, offset], grad_output, [grad_input, grad_offset])


def _deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float = 1,
    **options: int,
) -> None:
    def output(w: Tensor) -> Tensor:
        return _deform_conv2d(input, offset, w, **_plain_options(options))

    # the gradient of a weight does not depend on its values
    _write_gradients(output, [torch.zeros_like(grad_weight)], grad_output * scale, [grad_weight])


def _modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    with_bias: bool,
    **options: int,
) -> None:
    output.copy_(
        _deform_conv2d(
            input, offset, weight, bias if with_bias else None, mask, **_modulated_options(options)
        )
    )


def _modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    with_bias: bool,
    **options: int,
) -> None:
    def output(x: Tensor, moved: Tensor, w: Tensor, modulation: Tensor, b: Tensor | None = None) -> Tensor:
        return _deform_conv2d(x, moved, w, b, modulation, **_modulated_options(options))

    inputs, gradients = [input, offset, weight, mask], [grad_input, grad_offset, grad_weight, grad_mask]
    if with_bias:
        inputs.append(bias)
        gradients.append(grad_bias)
    _write_gradients(output, inputs, grad_output, gradients)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "nms": _nms,
    "sigmoid_focal_loss_forward": _sigmoid_focal_loss_forward,
    "sigmoid_focal_loss_backward": _sigmoid_focal_loss_backward,
    "softnms": _soft_nms,
    "nms_match": _nms_match,
    "roi_align_forward": _roi_align_forward,
    "roi_align_backward": _roi_align_backward,
    "deform_conv_forward": _deform_conv_forward,
    "deform_conv_backward_input": _deform_conv_backward_input,
    "deform_conv_backward_parameters": _deform_conv_backward_parameters,
    "modulated_deform_conv_forward": _modulated_deform_conv_forward,
    "modulated_deform_conv_backward": _modulated_deform_conv_backward,
}


def main(arguments: Sequence[str]) -> None:
    """Run a Python script, such as mmdetection's tools/train.py, with :func:`provide_ops`."""
    if not arguments:
        raise SystemExit("usage: python -m fcos_fast.integrations.mmcv SCRIPT [arguments of the script]")
    if not Path(arguments[0]).is_file():
        raise SystemExit(
            f"fcos_fast.integrations.mmcv: {arguments[0]} is not a file; give the path of a Python script"
        )
    provide_ops()
    sys.argv = list(arguments)
    sys.path[0] = str(Path(arguments[0]).resolve().parent)  # as python SCRIPT does
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
