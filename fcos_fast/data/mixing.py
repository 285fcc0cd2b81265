"""Augmentations that mix several images: mosaic and copy-paste.

A sample is a dictionary of ``image``, uint8 (3, H, W), its ``boxes`` (N, 4) xyxy, ``labels`` (N,) and ``ignore`` (N,).
Random numbers come from torch's generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

Sample = dict[str, Any]
Size = tuple[int, int]

FILL = [124, 116, 104]  # ImageNet's mean color, which normalization maps to zero
MIN_VISIBLE = 0.1
"""Boxes of a mosaic that keep a smaller fraction of their area are dropped."""
MAX_COVERED = 0.3
"""The largest fraction of a box that pasted objects may cover."""
PLACES = 5
"""Random places that are tried for an object; after these it is not pasted."""


def uniform(low: float, high: float) -> float:
    """A random number."""
    return low + (high - low) * torch.rand(()).item()


def place(sample: Sample, factor: float, size: Size) -> Sample:
    """Scale a sample by ``factor``, then crop or pad it to ``size`` at a random place."""
    image_size = sample["image"].shape[-2:]
    scaled = [max(1, round(side * factor)) for side in image_size]
    # For y and x: the offset of the scaled image in the result; a negative one crops it.
    places = [round(uniform(0, whole - part)) for whole, part in zip(size, scaled, strict=True)]
    kept = [min(whole, part) for whole, part in zip(size, scaled, strict=True)]
    crop = [*(max(0, -place) for place in places), *kept]
    top, left = (max(0, place) for place in places)
    padding = [left, top, size[1] - kept[1] - left, size[0] - kept[0] - top]

    def place_one(x: tv_tensors.TVTensor) -> tv_tensors.TVTensor:
        x = v2.functional.crop(v2.functional.resize(x, scaled, antialias=True), *crop)
        return v2.functional.pad(x, padding, fill=FILL) if any(padding) else x

    return {**sample, "image": place_one(sample["image"]), "boxes": place_one(sample["boxes"])}


def fit(sample: Sample, size: Size) -> float:
    """The factor by which a sample fits into ``size``."""
    height, width = sample["image"].shape[-2:]
    return float(min(size[0] / height, size[1] / width))


def mosaic(samples: Sequence[Sample], size: Size, scale: tuple[float, float]) -> Sample:
    """One sample of ``size`` from four, which meet at a random point (YOLOv4, arXiv:2004.10934).

    Each fills a quarter with a random part of itself, at a half to all of the size that it has without a mosaic, times
    a random factor in ``scale``.
    """
    rows, columns = (_split(side) for side in size)
    image = samples[0]["image"].new_empty((3, *size))
    parts = []
    quarters = [(row, column) for row in rows for column in columns]
    for sample, ((top, height), (left, width)) in zip(samples, quarters, strict=True):
        factor = fit(sample, size) * uniform(*scale) * uniform(0.5, 1)
        part = place(sample, factor, (height, width))
        image[:, top : top + height, left : left + width] = part["image"]
        visible = _areas(part["boxes"]) >= MIN_VISIBLE * factor**2 * _areas(sample["boxes"])
        boxes = part["boxes"].as_subclass(Tensor) + torch.tensor([left, top, left, top])
        parts.append(
            {"boxes": boxes[visible], "labels": part["labels"][visible], "ignore": part["ignore"][visible]}
        )
    return _sample(image, *(torch.cat([part[name] for part in parts]) for name in parts[0]))


def copy_paste(sample: Sample, source: Sample) -> Sample:
    """Paste about half the objects of ``source``, with the rectangles around them, into a sample at random places.

    The form of copy-paste (arXiv:2012.07177) for boxes without masks. Objects are not pasted where they would cover
    another box, nor with much of another object of ``source`` in their rectangle. ``ignore`` boxes are not pasted.
    """
    image = sample["image"].clone()
    height, width = image.shape[1:]
    boxes, labels = sample["boxes"].as_subclass(Tensor), sample["labels"]
    hidden = torch.zeros(len(boxes))  # the fraction of each box that pasted objects cover
    from_boxes = source["boxes"].as_subclass(Tensor)
    for i in torch.nonzero(torch.rand(len(from_boxes)) < 0.5).flatten().tolist():
        box = from_boxes[i]
        others = torch.cat((from_boxes[:i], from_boxes[i + 1 :]))
        if source["ignore"][i] or (covered_by(box, others) > MAX_COVERED).any():
            continue
        x1, y1 = box[:2].floor().int().tolist()
        x2, y2 = box[2:].ceil().int().tolist()
        crop = source["image"][:, y1:y2, x1:x2]
        if crop.shape[1] > height or crop.shape[2] > width:
            continue
        for _ in range(PLACES):
            left, top = round(uniform(0, width - (x2 - x1))), round(uniform(0, height - (y2 - y1)))
            moved = box + torch.tensor([left - x1, top - y1] * 2)
            now_hidden = hidden + covered_by(moved, boxes)
            if (now_hidden <= MAX_COVERED).all():
                image[:, top : top + y2 - y1, left : left + x2 - x1] = crop
                boxes, hidden = torch.cat((boxes, moved[None])), torch.cat((now_hidden, torch.zeros(1)))
                labels = torch.cat((labels, source["labels"][i : i + 1]))
                break
    ignore = torch.cat((sample["ignore"], sample["ignore"].new_zeros(len(boxes) - len(sample["ignore"]))))
    return _sample(image, boxes, labels, ignore)


def covered_by(box: Tensor, others: Tensor) -> Tensor:
    """(N,): the fraction of each of the ``others`` (N, 4) that ``box`` (4,) covers."""
    sides = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0)
    return sides.prod(dim=1) / _areas(others).clamp(min=1e-6)


def _split(side: int) -> list[tuple[int, int]]:
    """Start and length of the two parts of ``side``, split between a quarter and three quarters."""
    first = min(max(1, round(side * uniform(0.25, 0.75))), side - 1)
    return [(0, first), (first, side - first)]


def _areas(boxes: Tensor) -> Tensor:
    boxes = boxes.as_subclass(Tensor)
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


def _sample(image: Tensor, boxes: Tensor, labels: Tensor, ignore: Tensor) -> Sample:
    canvas = (image.shape[1], image.shape[2])
    return {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas),
        "labels": labels,
        "ignore": ignore,
    }
