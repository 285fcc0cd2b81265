"""The three losses of FCOS and their gradients, from the head's maps of two 800x1088 images and 91 classes.

torchvision's rows begin where its head's convolutions end: they permute and concatenate the levels, then compute the
losses of its FCOS head. Targets are assigned beforehand.
"""

from __future__ import annotations

import functools

import torch

from benchmarks.case import COMPILED, OURS, Case, torchvision
from benchmarks.data import random_boxes
from fcos_fast import ops, reference
from fcos_fast.assignment import RULES, GroundTruth

STRIDES = (8, 16, 32, 64, 128)
SIZE = (800, 1088)
FEATURE_SIZES = [(-(-SIZE[0] // s), -(-SIZE[1] // s)) for s in STRIDES]
IMAGES, CLASSES, BOXES = 2, 91, 20


def make(device, dtype, memory_format):
    boxes = [random_boxes(BOXES, 16, 400) for _ in range(IMAGES)]
    gt = GroundTruth.pack(boxes, [torch.randint(1, CLASSES, (BOXES,)) for _ in range(IMAGES)]).to(device)
    rule = RULES["torchvision"]
    levels = rule.levels(FEATURE_SIZES, SIZE)
    targets = ops.assign_targets(gt, levels, rule)

    def maps(channels, mean, spread):
        def one(size):
            values = mean + spread * torch.randn(IMAGES, channels, *size)
            return values.to(device, dtype).contiguous(memory_format=memory_format)

        return [one(size) for size in FEATURE_SIZES]

    outputs = maps(CLASSES, -4, 2), [x.abs() for x in maps(4, 2, 1)], maps(1, 0, 1)
    for part in outputs:
        for x in part:
            x.requires_grad_()
    corners = torch.cat([level.points(device) for level in levels])  # (P, 2)
    strides = torch.cat(
        [torch.full((h * w,), float(s)) for (h, w), s in zip(FEATURE_SIZES, STRIDES, strict=True)]
    )
    half = strides.to(device)[:, None] / 2
    anchors = [torch.cat((corners - half, corners + half), dim=1)] * IMAGES
    starts = [BOXES * i for i in range(IMAGES)]
    matched = [
        torch.where(row >= 0, row - start, -1).long()
        for row, start in zip(targets.matched, starts, strict=True)
    ]
    truth = [
        {"boxes": box.to(device), "labels": gt.labels[i * BOXES :][:BOXES]} for i, box in enumerate(boxes)
    ]
    return *outputs, targets, truth, anchors, matched


def with_gradients(losses):
    def run(cls_logits, box_regression, centerness, *others):
        values = losses(cls_logits, box_regression, centerness, *others)
        grads = torch.autograd.grad(sum(values.values()), [*cls_logits, *box_regression, *centerness])
        return *(value.detach() for value in values.values()), *grads

    return run


def of_package(package):
    def losses(cls_logits, box_regression, centerness, targets, *_):
        return package.detection_loss(
            cls_logits, box_regression, centerness, targets, units=STRIDES, centerness_weighted=False
        )

    return with_gradients(losses)


def of_torchvision(compute_loss):
    def flatten(maps, channels):
        """As the ends of torchvision's two branches do."""
        rows = [x.view(IMAGES, -1, channels, *x.shape[2:]).permute(0, 3, 4, 1, 2) for x in maps]
        return torch.cat([x.reshape(IMAGES, -1, channels) for x in rows], dim=1)

    def losses(cls_logits, box_regression, centerness, targets, truth, anchors, matched):
        outputs = {
            "cls_logits": flatten(cls_logits, CLASSES),
            "bbox_regression": flatten(box_regression, 4),
            "bbox_ctrness": flatten(centerness, 1),
        }
        return compute_loss(truth, outputs, anchors, matched)

    return with_gradients(losses)


def rows():
    rows = {"reference": of_package(reference), COMPILED: of_package(_Compiled)}
    if torchvision:
        head = torchvision.models.detection.fcos.FCOSHead(8, 1, CLASSES, num_convs=0)
        rows["torchvision"] = of_torchvision(head.compute_loss)
    rows[OURS] = of_package(ops)
    rows["floor: copy of the maps"] = lambda *data: [x.detach().clone() for part in data[:3] for x in part]
    return rows


class _Compiled:
    """torch.compile of the reference."""

    detection_loss = staticmethod(torch.compile(reference.detection_loss))


def check(result, expected):
    """In float32 the gradients too; in bfloat16 torchvision, not fcos_fast, decodes boxes to whole and half pixels."""
    if expected[-1].dtype == torch.bfloat16:
        torch.testing.assert_close(
            torch.stack(result[:3]), torch.stack(expected[:3]).float(), rtol=5e-2, atol=0
        )
        return
    for ours, theirs in zip(result, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


LAYOUTS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}

CASES = [
    Case(
        "detection_loss",
        f"{IMAGES} images {SIZE[0]}x{SIZE[1]}, {CLASSES} classes, {str(dtype).removeprefix('torch.')}, {layout}",
        functools.partial(make, dtype=dtype, memory_format=memory_format),
        rows(),
        check,
    )
    for dtype in (torch.float32, torch.bfloat16)
    for layout, memory_format in LAYOUTS.items()
]


def test_detection_loss(time_row):
    time_row()
