"""A whole training step: forward, losses, backward and optimizer, of two (on a GPU sixteen) 800x1066 images.

On a GPU, additional rows are compiled torchvision, torchvision with its network in CUDA graphs, and this package's own
training step, which is a single CUDA graph and also clips the gradient and checks that it is finite.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from benchmarks.case import Case
from benchmarks.models.resnet50 import (
    CLASSES,
    DEVICE,
    DTYPE,
    IMAGES,
    Way,
    build,
    convolutions,
    make_batch,
    ways,
)
from benchmarks.rows import COMPILED, OURS, graph_of
from fcos_fast.engine.step import TrainStep
from fcos_fast.models import fcos, retinanet
from fcos_fast.models.packing import BatchPacker

SIZE = (800, 1066)
SGD = functools.partial(torch.optim.SGD, lr=1e-6, momentum=0.9, weight_decay=1e-4)


def step(way):
    optimizer = None

    def run(images, targets):
        nonlocal optimizer
        model = way.ready(images, training=True)
        if optimizer is None:
            optimizer = SGD([p for p in model.parameters() if p.requires_grad])
        with way.autocast(images[0].device):
            losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return torch.stack([losses[name].detach().float() for name in sorted(losses)])

    return run


def whole_step_as_graph(kind, channels_last):
    """The package's own model with the same weights, and its training step."""
    make = {"FCOS": (fcos, "torchvision"), "RetinaNet": (retinanet, "torchvision-retinanet")}
    train = batch = None

    def run(images, targets):
        nonlocal train, batch
        if train is None:
            device = images[0].device
            function, preset = make[kind]
            model = function("resnet50", CLASSES, preset=preset, norm="frozen", trainable_stages=3)
            model.load_state_dict(build(kind, "cpu").state_dict())
            memory_format = torch.channels_last if channels_last else torch.contiguous_format
            model = model.to(device, memory_format=memory_format).train()
            samples = [
                ((image * 255).round().byte().cpu(), {name: value.cpu() for name, value in target.items()})
                for image, target in zip(images, targets, strict=True)
            ]
            batch = [part.to(device) for part in BatchPacker(model.config).collate(samples)]
            optimizer = SGD([p for p in model.parameters() if p.requires_grad], fused=True)
            train = TrainStep(model, optimizer, dtype=DTYPE, cuda_graphs=device.type == "cuda")
        train.begin_epoch()
        train(*batch)
        of = dict(zip(train.losses, train._sums, strict=True))
        return torch.stack([of[name] for name in sorted(of)])

    return run


TOLERANCE = {"FCOS": 0.05, "RetinaNet": 0.2}
"""With 16-bit types, torchvision rounds boxes and RetinaNet's anchors to whole pixels."""


def check(result, expected, data, kind):
    """Compare the losses of the first step."""
    tolerance = 1e-4 if torch.float32 == DTYPE else TOLERANCE[kind]
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=0)


def case(kind, title, rows):
    return Case(
        "training_step",
        f"{kind}-R50, {IMAGES} images {SIZE[0]}x{SIZE[1]}, {title}",
        functools.partial(make_batch, size=SIZE),
        rows,
        functools.partial(check, kind=kind),
        synchronizes=True,
        peer_synchronizes=True,
        devices=(DEVICE.type,),
    )


def on_cpu():
    for title, (theirs, ours) in ways("FCOS").items():
        rows = {
            "torchvision": step(theirs),
            OURS: step(ours),
            "floor: PyTorch's convolutions alone": convolutions("FCOS", True, ours.channels_last),
        }
        yield case("FCOS", title, rows)


def on_gpu():
    for kind in ("FCOS", "RetinaNet"):
        theirs = Way(kind, DTYPE, channels_last=True)
        ours = replace(theirs, accelerated=True)
        rows = {
            "torchvision": step(theirs),
            OURS: step(ours),
            graph_of("torchvision's network"): step(replace(theirs, cuda_graphs=True)),
            graph_of(f"{OURS}'s network"): step(replace(ours, cuda_graphs=True)),
            graph_of(f"{OURS}'s whole step"): whole_step_as_graph(kind, channels_last=True),
            "torchvision as shipped (float32, NCHW)": step(Way(kind)),
            "floor: PyTorch's convolutions alone": convolutions(kind, True, channels_last=True),
            f"{COMPILED} of torchvision's network": step(replace(theirs, compiled=True)),
        }
        yield case(kind, f"{str(DTYPE).removeprefix('torch.')}, channels-last", rows)


CASES = list(on_gpu() if DEVICE.type == "cuda" else on_cpu())


def test_training_step(time_row):
    time_row()
