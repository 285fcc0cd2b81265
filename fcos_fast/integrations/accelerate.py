"""One line that makes a detector of torchvision, mmdetection or detectron2 faster: :func:`accelerate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from operator import attrgetter
from typing import Literal, NamedTuple, TypeVar, get_args

import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet

from fcos_fast import models
from fcos_fast.integrations import fcos, retinanet
from fcos_fast.integrations.cuda_graphs import forget_graphs
from fcos_fast.integrations.detector import AcceleratedDetector, Acceleration, check_names, check_parts
from fcos_fast.integrations.layers import Replaced, fold_reversibly, fuse_group_norms, undo
from fcos_fast.integrations.subclasses import accelerated_class
from fcos_fast.models.winograd import MIN_CHANNELS, use_winograd
from fcos_fast.precision import choose_precision
from fcos_fast.suggest import unknown_name

AutocastPrecision = Literal["auto", "float32", "bfloat16", "float16"]

Model = TypeVar("Model", bound=nn.Module)


class _Support(NamedTuple):
    """How a torchvision detector is accelerated.

    Attributes:
        parts: name of each part to its required class.
        accelerated: name of each part to its accelerated class.
        summary: what is fused, for the printed summary.
        check: raises a ValueError for settings that cannot be accelerated.
    """

    parts: Mapping[str, type]
    accelerated: Mapping[str, type]
    summary: str
    check: Callable[[nn.Module], None] = lambda model: None


_SUPPORTED: dict[type[nn.Module], _Support] = {
    FCOS: _Support(
        fcos.PARTS, fcos.ACCELERATED, "target assignment, losses and post-processing", fcos.check_fcos
    ),
    RetinaNet: _Support(
        retinanet.PARTS, retinanet.ACCELERATED, "anchor matching, losses and post-processing"
    ),
}

_OTHER_PROJECTS = ("mmdet", "detectron2")
"""Packages whose detectors are accelerated by the module of the same name."""


def accelerate(
    model: Model,
    *,
    channels_last: bool = False,
    precision: AutocastPrecision | None = None,
    fold_frozen_bn: bool = False,
    fuse_group_norm: bool = False,
    winograd: bool = False,
    compile: bool = False,
    cuda_graphs: bool = False,
) -> Model:
    """Make a detector of torchvision, mmdetection or detectron2 faster, in place.

    In torchvision's models, fused operators replace target assignment, the three losses and post-processing of FCOS,
    and anchor matching, focal loss and post-processing of RetinaNet. In mmdetection's they replace what ``FCOSHead``,
    ``RetinaHead`` and ``FocalLoss`` compute, in detectron2's what ``FCOS`` and ``RetinaNet`` compute; of the options
    only ``winograd`` applies to these. Without options, losses, gradients and detections equal the original's up to the
    rounding of float32 sums (relative 1e-5). The model stays the same object with the same parameters: state dict,
    checkpoints, optimizers, ``copy.deepcopy``, ``torch.save`` and DistributedDataParallel keep working.

    A one-line summary is printed. A second call undoes the first and starts over; call it again after replacing a part
    of the model, such as the head. ``torch.jit.script`` does not support accelerated models; :func:`restore` them
    first. ``docs/accelerate.md`` lists all differences.

    Options can change results, as described:

    Args:
        model: ``torchvision.models.detection.FCOS`` or ``RetinaNet``, with any backbone and number of classes, in
            training or evaluation mode, before it is wrapped in DistributedDataParallel. Also accepted: a subclass that
            overrides no method except ``__init__``, and a module that contains exactly one such detector, such as a
            LightningModule. Or a detector of mmdetection or detectron2; heads of mmdetection that differ from the
            published ones are left unchanged and named.
        channels_last: make images, and so all activations, channels-last. Convolutions may sum in another order.
            Weights keep their memory format, because an optimizer may already have state in it.
        precision: precision of backbone and head: ``"float32"``, ``"bfloat16"`` or ``"float16"`` (needs a gradient
            scaler) by autocast, or ``"auto"``: bfloat16 on devices with fast bfloat16. Losses and post-processing run
            in float32. None: the caller's autocast.
        fold_frozen_bn: fold every ``FrozenBatchNorm2d`` (and in evaluation mode ``BatchNorm2d``) into the convolution
            before it, in training too. This saves a pass over the activations; gradients of the weights stay correct.
            Rounding differs: in bfloat16 the folded weight is rounded instead of the normalized activation. Call
            ``convert_sync_batchnorm`` before.
        fuse_group_norm: run every group norm and the ReLU after it in an ``nn.Sequential`` as one operator. Sums are in
            another order; under autocast the result has the dtype of its input and is rounded once.
        winograd: on a CPU in float32, use Winograd's method for 3x3 convolutions of stride 1 with at least 64
            channels, forward and backward: a quarter of the multiplications. Results differ by a few units in the last
            place of the largest terms (measured relative to the norm: 2e-6 forward, 4e-6 for gradients). No effect on a
            GPU, in other dtypes and in compiled code; cuDNN chooses its own method.
        compile: run backbone and head through ``torch.compile``, which compiles again for new image sizes.
        cuda_graphs: capture backbone and head with their backward pass as a CUDA graph for each batch size and image
            size, and replay it: the same kernels without the host's work. For up to 8 sizes; others run without. Each
            backward pass needs ``zero_grad(set_to_none=True)`` before it; gradients cannot be accumulated. Not yet
            tested on a GPU.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: unsupported model, or methods or parts of its own that would be ignored; the message names them.
        ValueError: an option without effect on this model, or that cannot work here.

    Example:
        >>> model = torchvision.models.detection.fcos_resnet50_fpn()
        >>> fcos_fast.accelerate(model, channels_last=True, precision="auto", fold_frozen_bn=True)
    """
    for project in _OTHER_PROJECTS:
        if _is_of(project, model):
            others = {
                "channels_last": channels_last,
                "precision": precision is not None,
                "fold_frozen_bn": fold_frozen_bn,
                "fuse_group_norm": fuse_group_norm,
                "compile": compile,
                "cuda_graphs": cuda_graphs,
            }
            if given := [name for name, value in others.items() if value]:
                raise ValueError(f"accelerate: {', '.join(given)} is for detectors of torchvision; omit it")
            return _accelerate_classes(project, model, winograd)
    detector = _find(model)
    if isinstance(detector, AcceleratedDetector):
        restore(detector)
    support, name = _support(detector), type(detector).__name__
    device = next(detector.parameters()).device
    dtype = None if precision is None else _dtype(precision, device)
    if cuda_graphs and device.type != "cuda":
        raise ValueError(
            f"accelerate: cuda_graphs=True, but the model is on {device}; call model.to('cuda') first, or omit "
            "the option"
        )

    acceleration = Acceleration(channels_last=channels_last, dtype=dtype, cuda_graphs=cuda_graphs)
    acceleration.replaced, done = _replace_layers(detector, winograd, fold_frozen_bn, fuse_group_norm)
    done.insert(0, f"{support.summary} fused")
    if channels_last:
        done.append("channels-last")
    if dtype is not None:
        done.append(f"{dtype}".removeprefix("torch."))
    if compile:
        acceleration.compiled += [detector.get_submodule("backbone"), detector.get_submodule("head")]
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
    assert isinstance(detector, AcceleratedDetector)  # since its class was replaced
    detector.acceleration = acceleration
    print(f"fcos_fast.accelerate: {name}: {', '.join(done)}")
    return model


def _is_of(project: str, model: nn.Module) -> bool:
    """Is the class of the model, or of a module in it, defined by ``project``?"""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return any(kind.__module__.split(".")[0] == project for kind in kinds)


def _accelerate_classes(project: str, model: Model, winograd: bool) -> Model:
    """Accelerate a detector of another project, in which single classes are replaced."""
    _check_not_wrapped(model, set(model.modules()))
    if isinstance(vars(model).get("acceleration"), Acceleration):
        restore(model)
    replaced, done = import_module(f"fcos_fast.integrations.{project}").replace_classes(model)
    if winograd:
        try:
            convs = _use_winograd(model)
        except ValueError:
            undo(replaced)
            raise
        replaced += convs
        done.append(f"{len(convs)} convolutions by Winograd's method")
    model.acceleration = Acceleration(replaced=replaced)  # type: ignore[assignment]  # not a module or tensor
    print(f"fcos_fast.accelerate: {type(model).__name__}: {', '.join(done)}")
    return model


def _use_winograd(model: nn.Module) -> Replaced:
    convs = use_winograd(model)
    if not convs:
        raise ValueError(
            f"accelerate: winograd=True, but the model has no 3x3 convolution of stride 1 with at least {MIN_CHANNELS} "
            "channels; omit the option"
        )
    return convs


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`: the same object with its previous classes and the present weights.

    Raises:
        ValueError: neither the model nor a detector in it was accelerated.
    """
    detectors = [m for m in model.modules() if isinstance(vars(m).get("acceleration"), Acceleration)]
    if not detectors:
        raise ValueError(f"restore: this {type(model).__name__} was not accelerated, nothing to undo")
    for detector in detectors:
        acceleration: Acceleration = vars(detector)["acceleration"]
        del detector.acceleration
        forget_graphs(detector)
        undo(acceleration.replaced)
        for module in acceleration.compiled:
            module._compiled_call_impl = None
    return model


def _replace_layers(
    detector: nn.Module, winograd: bool, fold_frozen_bn: bool, fuse_group_norm: bool
) -> tuple[Replaced, list[str]]:
    """Replace the classes of layers in place; returns the previous ones, and what was done in words.

    Raises:
        ValueError: an option has no effect on this detector, whose layers are as before.
    """
    replaced: Replaced = []
    done = []
    try:
        if winograd:
            convs = _use_winograd(detector)
            replaced += convs
            done.append(f"{len(convs)} convolutions by Winograd's method")
        if fold_frozen_bn:
            folded = fold_reversibly(detector.get_submodule("backbone"))
            replaced += folded
            done.append(f"{len(folded) // 2} batch norms folded")
        if fuse_group_norm:
            fused = fuse_group_norms(detector)
            replaced += fused
            done.append(f"{len(fused) // 2} group norms fused with their ReLU")
    except ValueError:
        undo(replaced)
        raise
    return replaced, done


def _find(model: nn.Module) -> nn.Module:
    """``model``, or the only detector that it contains."""
    found: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if any(isinstance(module, kind) for kind in _SUPPORTED)
    }
    _check_not_wrapped(model, set(found.values()))
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise TypeError(
            f"accelerate: this {type(model).__name__} contains {len(found)} detectors, "
            f"{', '.join(f'model.{name}' if name else 'model' for name in found)}; accelerate them one by one"
        )
    remedy = "expected torchvision.models.detection.FCOS or RetinaNet, or a module that contains exactly one"
    if isinstance(model, models.Detector):
        remedy = "all of this is built in; optimize_for_inference makes detection faster"
    kind = type(model)
    raise TypeError(f"accelerate: got {kind.__module__}.{kind.__qualname__}: {remedy}")


def _check_not_wrapped(model: nn.Module, detectors: set[nn.Module]) -> None:
    """Raise a TypeError if a wrapper in ``model`` contains one of the detectors."""
    for name, module in model.named_modules():
        if detectors.isdisjoint(module.modules()):
            continue
        called = f"model.{name}" if name else type(model).__name__
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(
                f"accelerate: {called} is a wrapper; accelerate its .module, preferably before wrapping"
            )
        if hasattr(module, "_orig_mod"):
            raise TypeError(
                f"accelerate: {called} is a compiled model; call accelerate(model, compile=True) on the original "
                "model instead"
            )


def _support(detector: nn.Module) -> _Support:
    support = next(support for kind, support in _SUPPORTED.items() if isinstance(detector, kind))
    check_parts(detector, support.parts)
    check_names(detector, support.accelerated[""])
    support.check(detector)
    return support


def _dtype(precision: AutocastPrecision, device: torch.device) -> torch.dtype:
    if precision not in get_args(AutocastPrecision):
        raise unknown_name("precision", precision, get_args(AutocastPrecision))
    return choose_precision(precision, device)[0]
