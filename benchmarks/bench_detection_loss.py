"""The three losses of FCOS and their gradients, from the head's maps of a batch.

The torchvision row starts after the convolutions of its head: it permutes and concatenates the levels, then computes
the losses of its FCOS head. Target assignment is not included.
"""

from __future__ import annotations

import functools

import torch

from benchmarks.case import Case, nbytes, torchvision
from benchmarks.data import BATCHES, STRIDES, random_boxes
from benchmarks.rows import COMPILED, OURS
from fcos_fast import ops, reference
from fcos_fast.assignment import RULES, GroundTruth

BOXES = 20  # per image


def make(device, batch, dtype, memory_format):
    boxes = [random_boxes(BOXES, 16, 400) for _ in range(batch.images)]
    labels = [torch.randint(1, batch.classes, (BOXES,)) for _ in boxes]
    gt = GroundTruth.pack(boxes, labels).to(device)
    rule = RULES["torchvision"]
    levels = rule.levels(batch.feature_sizes, batch.size)
    targets = ops.assign_targets(gt, levels, rule)

    def maps(channels, mean, spread):
        def one(size):
            values = mean + spread * torch.randn(batch.images, channels, *size)
            return values.to(device, dtype).contiguous(memory_format=memory_format)

        return [one(size) for size in batch.feature_sizes]

    outputs = maps(batch.classes, -4, 2), [x.abs() for x in maps(4, 2, 1)], maps(1, 0, 1)
    for part in outputs:
        for x in part:
            x.requires_grad_()
    corners = torch.cat([level.points(device) for level in levels])  # (P, 2)
    strides = torch.cat(
        [torch.full((h * w,), float(s)) for (h, w), s in zip(batch.feature_sizes, STRIDES, strict=True)]
    )
    half = strides.to(device)[:, None] / 2
    anchors = [torch.cat((corners - half, corners + half), dim=1)] * batch.images
    starts = [BOXES * i for i in range(batch.images)]
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
    def flatten(maps):
        """As at the end of torchvision's two branches."""
        images, channels = maps[0].shape[:2]
        rows = [x.view(images, -1, channels, *x.shape[2:]).permute(0, 3, 4, 1, 2) for x in maps]
        return torch.cat([x.reshape(images, -1, channels) for x in rows], dim=1)

    def losses(cls_logits, box_regression, centerness, targets, truth, anchors, matched):
        outputs = {
            "cls_logits": flatten(cls_logits),
            "bbox_regression": flatten(box_regression),
            "bbox_ctrness": flatten(centerness),
        }
        return compute_loss(truth, outputs, anchors, matched)

    return with_gradients(losses)


def rows(classes):
    rows = {"reference": of_package(reference), COMPILED: of_package(_Compiled)}
    if torchvision:
        head = torchvision.models.detection.fcos.FCOSHead(8, 1, classes, num_convs=0)
        rows["torchvision"] = of_torchvision(head.compute_loss)
    rows[OURS] = of_package(ops)
    rows["floor: copy of the maps"] = lambda *data: [x.detach().clone() for part in data[:3] for x in part]
    return rows


class _Compiled:
    """The compiled reference."""

    detection_loss = staticmethod(torch.compile(reference.detection_loss))


def check(result, expected, data):
    """Compare gradients in float32 only: in bfloat16, torchvision rounds decoded boxes to whole pixels."""
    if expected[-1].dtype == torch.bfloat16:
        torch.testing.assert_close(
            torch.stack(result[:3]), torch.stack(expected[:3]).float(), rtol=5e-2, atol=0
        )
        return
    for ours, theirs in zip(result, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


def bytes_moved(cls_logits, box_regression, centerness, targets, *_):
    """Read the maps, write their gradients, and read the label of every location."""
    return 2 * nbytes(*cls_logits, *box_regression, *centerness) + nbytes(targets.labels)


FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}

CASES = [
    Case(
        "detection_loss",
        f"{batch}, {str(dtype).removeprefix('torch.')}, {name}",
        functools.partial(make, batch=batch, dtype=dtype, memory_format=memory_format),
        rows(batch.classes),
        check,
        peer_synchronizes=torchvision is not None,
        devices=(device,),
        bytes_moved=bytes_moved,
    )
    for device, batch in BATCHES.items()
    for dtype in (torch.float32, torch.bfloat16)
    for name, memory_format in FORMATS.items()
]


def test_detection_loss(time_row):
    time_row()
