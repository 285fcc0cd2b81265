"""One line that makes a torchvision detector train and detect faster: :func:`accelerate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet

from fcos_fast import models
from fcos_fast.integrations.cuda_graphs import forget_graphs
from fcos_fast.integrations.detector import AcceleratedDetector, Acceleration
from fcos_fast.integrations.fcos import HEADS, AcceleratedFCOS, check_fcos
from fcos_fast.integrations.layers import fold_batch_norms, fuse_group_norms, undo
from fcos_fast.integrations.retinanet import AcceleratedRetinaNet, check_retinanet
from fcos_fast.models.names import unknown_name
from fcos_fast.models.winograd import use_winograd
from fcos_fast.precision import choose_precision

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

Model = TypeVar("Model", bound=nn.Module)


class _Support(NamedTuple):
    """How a torchvision detector is accelerated: the classes that take over, what it must fulfil, what is replaced."""

    model: type[AcceleratedDetector]
    parts: dict[str, type[nn.Module]]
    check: Callable[[nn.Module], None]
    replaced: str


_SUPPORTED: dict[type[nn.Module], _Support] = {
    FCOS: _Support(AcceleratedFCOS, HEADS, check_fcos, "target assignment, losses and post-processing"),
    RetinaNet: _Support(AcceleratedRetinaNet, {}, check_retinanet, "anchor matching, focal loss and NMS"),
}


def accelerate(
    model: Model,
    *,
    channels_last: bool = False,
    precision: str | None = None,
    fold_frozen_bn: bool = False,
    fuse_group_norm: bool = False,
    winograd: bool = False,
    compile: bool = False,
    cuda_graphs: bool = False,
) -> Model:
    """Make a torchvision ``FCOS`` or ``RetinaNet`` faster, in place.

    Of FCOS target assignment, the three losses and the whole post-processing are replaced by fused operators; of
    RetinaNet anchor matching, focal loss and NMS. With every option off the losses, gradients and detections are those
    of torchvision up to the rounding of float32 sums (relative 1e-5). The model stays the same object with the same
    parameters: its state dict, checkpoints and optimizers keep working, ``copy.deepcopy``, ``torch.save`` and
    DistributedDataParallel too. It prints what was replaced in one line. A second call undoes the first and begins
    anew. ``torch.jit.script`` does not take an accelerated model; :func:`restore` it first.

    Each option can change results, as far as it says:

    Args:
        model: ``torchvision.models.detection.FCOS`` or ``RetinaNet``, with any backbone and number of classes, in
            training or evaluation mode; before it is wrapped in DistributedDataParallel.
        channels_last: images, and after them all activations, lie with their channels innermost. Convolutions may sum
            in another order. Weights keep their layout, in which an optimizer may already hold its state.
        precision: of backbone and head: ``"float32"``, ``"bfloat16"`` or ``"float16"`` (which needs a gradient
            scaler) by autocast, or ``"auto"``: bfloat16 where the machine multiplies it in hardware. Losses and
            post-processing compute in float32. None: as the caller's own autocast has it.
        fold_frozen_bn: every ``FrozenBatchNorm2d`` (and in evaluation mode ``BatchNorm2d``) that follows a
            convolution becomes a part of its weight and bias, in training too: nothing passes over the activations
            any more, and the convolution's weight gets the gradient that it got. Products are rounded in another order;
            with bfloat16 the folded weight is rounded instead of the normalised activation. ``convert_sync_batchnorm``
            comes before.
        fuse_group_norm: every group norm and the ReLU after it in an ``nn.Sequential`` run as one operator. Sums are in
            another order; under autocast the result has the precision of its input and is rounded once.
        winograd: on a CPU in float32, 3x3 convolutions of stride 1 with 128 channels or more take Winograd's method,
            forward and backward: a quarter of the multiplications. Their results differ by a few units in the last
            places of the largest terms (measured relative to the norm: 2e-6 forward, 4e-6 of gradients). On a GPU, in
            other types and where it is compiled they stay as they are; cuDNN chooses for itself.
        compile: backbone and head run through ``torch.compile``, which compiles again for new image sizes.
        cuda_graphs: backbone and head, and their backward pass, are captured as a CUDA graph for each size of image
            batch and replayed: the same kernels without the host's work. For up to 8 sizes; others run as before. Each
            backward pass needs ``zero_grad(set_to_none=True)`` before it: gradients cannot be accumulated. It has not
            run on a GPU yet.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: another kind of model, or one with parts of its own that it cannot know.
        ValueError: an option that finds nothing to do or cannot work here.

    Example:
        >>> model = torchvision.models.detection.fcos_resnet50_fpn()
        >>> fcos_fast.accelerate(model, channels_last=True, precision="auto", fold_frozen_bn=True)
    """
    if isinstance(model, AcceleratedDetector):
        restore(model)
    support, name = _support(model), type(model).__name__
    device = next(model.parameters()).device
    dtype = None if precision is None else _dtype(precision, device)
    if cuda_graphs and device.type != "cuda":
        raise ValueError(
            f"accelerate: cuda_graphs=True, but the model is on {device}; move it with model.to('cuda') first, or "
            "leave the option out"
        )

    acceleration = Acceleration(channels_last=channels_last, dtype=dtype, cuda_graphs=cuda_graphs)
    done = [f"{support.replaced} fused"]
    try:
        if winograd:
            convs = use_winograd(model)
            acceleration.replaced += convs
            done.append(f"{len(convs)} convolutions by Winograd's method")
        if fold_frozen_bn:
            folded = fold_batch_norms(model.backbone)
            acceleration.replaced += folded
            done.append(f"{len(folded) // 2} batch norms folded")
        if fuse_group_norm:
            fused = fuse_group_norms(model)
            acceleration.replaced += fused
            done.append(f"{len(fused) // 2} group norms fused with their ReLU")
    except ValueError:
        undo(acceleration.replaced)
        raise
    if channels_last:
        done.append("channels-last")
    if dtype is not None:
        done.append(f"{dtype}".removeprefix("torch."))
    if compile:
        acceleration.compiled += [model.backbone, model.head]
        for module in acceleration.compiled:
            module.compile()
        done.append("backbone and head compiled")
    if cuda_graphs:
        done.append("CUDA graphs")
    for part, accelerated in {**support.parts, "": support.model}.items():
        module = model.get_submodule(part)
        acceleration.replaced.append((module, type(module)))
        module.__class__ = accelerated
    model.acceleration = acceleration
    print(f"fcos_fast.accelerate: {name}: {', '.join(done)}")
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`: the same object, as torchvision made it, with its present weights.

    Raises:
        ValueError: the model was not accelerated.
    """
    if not isinstance(model, AcceleratedDetector):
        raise ValueError(
            f"restore: this {type(model).__name__} was not accelerated; there is nothing to undo"
        )
    acceleration = model.acceleration
    del model.acceleration
    forget_graphs(model)
    undo(acceleration.replaced)
    for module in acceleration.compiled:
        module._compiled_call_impl = None
    return model


def _support(model: nn.Module) -> _Support:
    kind = type(model)
    if kind in _SUPPORTED:
        support = _SUPPORTED[kind]
        support.check(model)
        return support
    remedy = "expected torchvision.models.detection.FCOS or RetinaNet"
    if isinstance(model, models.FCOS):
        remedy = "it has all of this built in; FCOS.optimize_for_inference makes it faster at detecting"
    elif isinstance(model, tuple(_SUPPORTED)):
        remedy = (
            "a subclass, of which accelerate cannot know what it changed; expected FCOS or RetinaNet itself"
        )
    elif isinstance(getattr(model, "module", None), tuple(_SUPPORTED)):
        remedy = "a wrapper; accelerate its .module, best before wrapping"
    elif isinstance(getattr(model, "_orig_mod", None), tuple(_SUPPORTED)):
        remedy = "a compiled model; accelerate(model, compile=True) the model itself instead"
    raise TypeError(f"accelerate: got {kind.__module__}.{kind.__qualname__}: {remedy}")


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    return choose_precision(precision, device)[0]
