"""One line that makes a torchvision detector train and detect faster: :func:`accelerate`."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet

from fcos_fast import models
from fcos_fast.integrations import fcos, retinanet
from fcos_fast.integrations.cuda_graphs import forget_graphs
from fcos_fast.integrations.detector import AcceleratedDetector, Acceleration, check_names, check_parts
from fcos_fast.integrations.layers import fold_batch_norms, fuse_group_norms, undo
from fcos_fast.integrations.subclasses import accelerated_class
from fcos_fast.models.winograd import use_winograd
from fcos_fast.precision import choose_precision
from fcos_fast.suggest import unknown_name

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

Model = TypeVar("Model", bound=nn.Module)


class _Support(NamedTuple):
    """How a torchvision detector is accelerated.

    Attributes:
        parts: what it must be made of, by name.
        accelerated: the classes that take over, by name.
        replaced: what they replace, in words.
        check: raises a ValueError for what else cannot be accelerated.
    """

    parts: dict[str, type]
    accelerated: dict[str, type[nn.Module]]
    replaced: str
    check: Callable[[nn.Module], None] = lambda model: None


_SUPPORTED: dict[type[nn.Module], _Support] = {
    FCOS: _Support(
        fcos.PARTS, fcos.ACCELERATED, "target assignment, losses and post-processing", fcos.check_fcos
    ),
    RetinaNet: _Support(retinanet.PARTS, retinanet.ACCELERATED, "anchor matching, losses and NMS"),
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
    anew, which is needed after a part of the model, such as its head, was replaced. ``torch.jit.script`` does not take
    an accelerated model; :func:`restore` it first. ``docs/accelerate.md`` lists what differs from torchvision.

    Each option can change results, as far as it says:

    Args:
        model: ``torchvision.models.detection.FCOS`` or ``RetinaNet``, with any backbone and number of classes, in
            training or evaluation mode; before it is wrapped in DistributedDataParallel. A subclass that overrides
            none of their methods but ``__init__``, or a module that contains exactly one such detector, as a
            LightningModule does.
        channels_last: images, and after them all activations, lie with their channels innermost. Convolutions may sum
            in another order. Weights keep their memory format, in which an optimizer may already hold its state.
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
        TypeError: another kind of model, or one with methods or parts of its own, which would be ignored; the message
            names them.
        ValueError: an option that finds nothing to do or cannot work here.

    Example:
        >>> model = torchvision.models.detection.fcos_resnet50_fpn()
        >>> fcos_fast.accelerate(model, channels_last=True, precision="auto", fold_frozen_bn=True)
    """
    detector = _find(model)
    if isinstance(detector, AcceleratedDetector):
        restore(detector)
    support, name = _support(detector), type(detector).__name__
    device = next(detector.parameters()).device
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
            convs = use_winograd(detector)
            acceleration.replaced += convs
            done.append(f"{len(convs)} convolutions by Winograd's method")
        if fold_frozen_bn:
            folded = fold_batch_norms(detector.backbone)
            acceleration.replaced += folded
            done.append(f"{len(folded) // 2} batch norms folded")
        if fuse_group_norm:
            fused = fuse_group_norms(detector)
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
        acceleration.compiled += [detector.backbone, detector.head]
        for module in acceleration.compiled:
            module.compile()
        done.append("backbone and head compiled")
    if cuda_graphs:
        done.append("CUDA graphs")
    for part, accelerated in support.accelerated.items():
        module = detector.get_submodule(part)
        acceleration.replaced.append((module, type(module)))
        module.__class__ = accelerated_class(accelerated, type(module))
    acceleration.parts = {part: attrgetter(part)(detector) for part in support.parts if part}
    detector.acceleration = acceleration
    print(f"fcos_fast.accelerate: {name}: {', '.join(done)}")
    return model


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`: the same object, as torchvision made it, with its present weights.

    Raises:
        ValueError: neither the model was accelerated nor one that it contains.
    """
    detectors = [module for module in model.modules() if isinstance(module, AcceleratedDetector)]
    if not detectors:
        raise ValueError(
            f"restore: this {type(model).__name__} was not accelerated; there is nothing to undo"
        )
    for detector in detectors:
        acceleration = detector.acceleration
        del detector.acceleration
        forget_graphs(detector)
        undo(acceleration.replaced)
        for module in acceleration.compiled:
            module._compiled_call_impl = None
    return model


def _find(model: nn.Module) -> nn.Module:
    """``model``, or the only detector that it contains."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, tuple(_SUPPORTED))}
    for name, module in model.named_modules():
        if not any(part in found.values() for part in module.modules()):
            continue
        called = f"model.{name}" if name else type(model).__name__
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(
                f"accelerate: {called} is a wrapper; accelerate its .module, best before wrapping"
            )
        if hasattr(module, "_orig_mod"):
            raise TypeError(
                f"accelerate: {called} is a compiled model; accelerate(model, compile=True) the model itself instead"
            )
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise TypeError(
            f"accelerate: this {type(model).__name__} contains {len(found)} detectors, "
            f"{', '.join(f'model.{name}' if name else 'model' for name in found)}; accelerate them one by one"
        )
    remedy = "expected torchvision.models.detection.FCOS or RetinaNet, or a module that contains exactly one"
    if isinstance(model, models.Detector):
        remedy = "it has all of this built in; optimize_for_inference makes it faster at detecting"
    kind = type(model)
    raise TypeError(f"accelerate: got {kind.__module__}.{kind.__qualname__}: {remedy}")


def _support(detector: nn.Module) -> _Support:
    support = next(support for kind, support in _SUPPORTED.items() if isinstance(detector, kind))
    check_parts(detector, support.parts)
    check_names(detector, support.accelerated[""])
    support.check(detector)
    return support


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    return choose_precision(precision, device)[0]
