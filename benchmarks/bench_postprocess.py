"""From the head outputs of a batch to at most 100 detections per image.

Logits are like those of a trained model: nearly all far below the threshold, except some hundreds around each of 40
objects. torchvision expects logits permuted to (B, locations, C), as returned by its head, and no bfloat16 on the CPU:
it gets float32, and its time does not include these copies.
"""

from __future__ import annotations

import functools

import torch

from benchmarks.case import Case, nbytes, torchvision
from benchmarks.data import BATCHES, STRIDES, Batch
from benchmarks.rows import OURS
from fcos_fast import ops, reference
from fcos_fast.assignment import RULES, Level

OBJECTS = 40  # per image
SETTINGS = {"score_threshold": 0.2, "topk_candidates": 1000, "max_detections": 100}


def levels_of(batch: Batch) -> list[Level]:
    return RULES["torchvision"].levels(batch.feature_sizes, batch.size)


def make(device, batch, dtype, memory_format):
    generator = torch.Generator().manual_seed(0)
    levels = levels_of(batch)
    maps = [head_outputs(batch, level, generator) for level in levels]
    maps = [[x.to(device, dtype, memory_format=memory_format) for x in of_level] for of_level in maps]
    cls_logits, box_regression, centerness = (list(of_kind) for of_kind in zip(*maps, strict=True))
    theirs = as_torchvision(levels, cls_logits, box_regression, centerness)
    return cls_logits, box_regression, centerness, theirs, levels, [batch.size] * batch.images


def head_outputs(batch: Batch, level: Level, generator: torch.Generator) -> list[torch.Tensor]:
    """Logits, distances in strides, and centerness of one level, with objects of the right size for it."""

    def noise(channels):
        return torch.randn(batch.images, channels, level.height, level.width, generator=generator)

    logits, distances, centerness = noise(batch.classes) * 0.8 - 6.5, noise(4).abs() + 2, noise(1) * 0.3 - 1
    y, x = torch.meshgrid(torch.arange(level.height), torch.arange(level.width), indexing="ij")
    for image in range(batch.images):
        for _ in range(OBJECTS // len(STRIDES)):
            row, column, label = (
                int(torch.randint(n, (), generator=generator))
                for n in (level.height, level.width, batch.classes)
            )
            off_y, off_x = y - row, x - column
            far = (off_y**2 + off_x**2).float().sqrt()
            near = (far < 5).float()
            logits[image, label] += near * (8.5 - far)
            centerness[image, 0] += near * (2 - far / 2)
            ltrb = torch.stack((5 + off_x, 5 + off_y, 5 - off_x, 5 - off_y))
            distances[image] = torch.where(near > 0, ltrb + distances[image] * 0.1, distances[image])
    return [logits, distances.clamp(min=0), centerness]


def as_torchvision(levels, cls_logits, box_regression, centerness):
    """Head outputs (B, locations, C) and anchors, as FCOS.forward passes them to postprocess_detections."""
    names = ("cls_logits", "bbox_regression", "bbox_ctrness")
    outputs = {
        name: [x.float().flatten(2).transpose(1, 2).contiguous() for x in maps]
        for name, maps in zip(names, (cls_logits, box_regression, centerness), strict=True)
    }
    anchors = []
    for level in levels:
        points = level.points(cls_logits[0].device)
        anchors.append(torch.cat((points - level.stride / 2, points + level.stride / 2), dim=1))
    return outputs, [anchors] * len(cls_logits[0])


@functools.cache
def torchvision_fcos():
    """A model for its post-processing; the network is never called."""
    model = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None)
    model.score_thresh, model.topk_candidates = SETTINGS["score_threshold"], SETTINGS["topk_candidates"]
    model.detections_per_img, model.nms_thresh = SETTINGS["max_detections"], 0.6
    return model


def by_torchvision(cls_logits, box_regression, centerness, theirs, levels, sizes):
    return torchvision_fcos().postprocess_detections(*theirs, sizes)


def run(postprocess, cls_logits, box_regression, centerness, theirs, levels, sizes):
    return postprocess(
        *(cls_logits, box_regression, centerness, levels, sizes),
        units=STRIDES,
        threshold_on="score",
        **SETTINGS,
    )


def read_logits(cls_logits, *others):
    """The greatest logit of each level, which reads all logits once."""
    return [x.amax() for x in cls_logits]


def rows():
    rows = {"reference": functools.partial(run, reference.postprocess)}
    if torchvision:
        rows["torchvision"] = by_torchvision
    rows[OURS] = functools.partial(run, ops.postprocess)
    rows["floor: reading the logits"] = read_logits
    return rows


def check(result, expected, data):
    """On a GPU, torchvision's NMS adds a per-class offset that rounds boxes, so compare with our CPU operator."""
    if data[0][0].is_cuda:
        expected = run(ops.postprocess, *([x.cpu() for x in maps] for maps in data[:3]), *data[3:])
    result, expected = (found if isinstance(found, list) else found.split() for found in (result, expected))
    for found, wanted in zip(result, expected, strict=True):
        assert len(wanted["scores"]) > 20
        torch.testing.assert_close(found, wanted, check_device=False)


CASES = [
    Case(
        "postprocess",
        f"{batch}, {str(dtype).removeprefix('torch.')}, {name}",
        functools.partial(make, batch=batch, dtype=dtype, memory_format=memory_format),
        rows(),
        check,
        peer_synchronizes=True,
        devices=(device,),
        slow_on_cuda=("reference",),
        bytes_moved=lambda cls_logits, *others: nbytes(*cls_logits),
    )
    for device, batch in BATCHES.items()
    for dtype in (torch.float32, torch.bfloat16)
    for name, memory_format in (("NCHW", torch.contiguous_format), ("channels-last", torch.channels_last))
]


def test_postprocess(time_row):
    time_row()
