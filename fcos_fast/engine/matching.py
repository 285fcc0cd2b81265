"""Detections of a dataset matched with its objects, by COCO's rule. NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fcos_fast.data.records import Record

IOU = 0.5
"""IoU from which on a detection finds an object of its class."""

NEAR = 0.1
"""IoU from which on a detection counts as near an object, as in TIDE."""

MOST = 100
"""Maximum number of detections per image and class, as in COCO's evaluation."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of all images, image after image.

    Attributes:
        boxes: (N, 4) float64, xyxy in pixels.
        labels: (N,) int64, 0..C-1.
        images: (N,) int64, index of the image.
    """

    boxes: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def starts(self, num_images: int) -> np.ndarray:
        """Index of the first box of each image, and the number of boxes; (num_images + 1,)."""
        return np.searchsorted(self.images, np.arange(num_images + 1))


@dataclass(frozen=True, eq=False)
class Matching:
    """D detections matched with G objects of the same image and class at IoU 0.5.

    Detections are matched in the order of their scores, each with the free object of the highest IoU. So a higher score
    threshold removes matches, and changes none.

    Attributes:
        num_images: number of images.
        num_classes: number C of classes.
        found: the detections; of an image in descending order of scores, at most 100 per class.
        scores: (D,) float64.
        objects: the ground truth.
        ignore: (G,) bool; such objects are neither found nor missed.
        areas: (G,) float64, in pixels.
        match: (D,) int64, index of the object; -1 for none. Many detections can match one that is ignored.
        near: (3, P) index of a detection, index of an object that is not ignored, and their IoU, for the pairs of one
            image, of any classes, with an IoU of at least 0.1.
    """

    num_images: int
    num_classes: int
    found: Boxes
    scores: np.ndarray
    objects: Boxes
    ignore: np.ndarray
    areas: np.ndarray
    match: np.ndarray
    near: tuple[np.ndarray, np.ndarray, np.ndarray]

    @cached_property
    def ignored(self) -> np.ndarray:
        """(D,) bool: matched with an object that is ignored, so neither true nor false positive."""
        return (self.match >= 0) & np.append(self.ignore, False)[self.match]

    @cached_property
    def true_positive(self) -> np.ndarray:
        """(D,) bool."""
        return (self.match >= 0) & ~self.ignored


def match_detections(
    records: Sequence[Record], detections: Sequence[Mapping[str, ArrayLike]], num_classes: int
) -> Matching:
    """Match the detections of each image with its objects.

    Args:
        records: ground truth of each image.
        detections: ``boxes`` (N, 4) xyxy in pixels, ``scores`` (N,) and ``labels`` (N,) in 0..C-1 of each image:
            arrays, or tensors on the CPU.
        num_classes: number C of classes.
    """
    objects = _pack([(record.boxes, record.labels) for record in records])
    ignore = np.concatenate([np.zeros(0, bool), *(np.asarray(record.ignore, bool) for record in records)])
    areas = np.concatenate(
        [np.zeros(0), *(_areas(record.boxes) if record.areas is None else record.areas for record in records)]
    )
    found = _pack([(detection["boxes"], detection["labels"]) for detection in detections])
    scores = np.concatenate([np.zeros(0), *(np.asarray(detection["scores"]) for detection in detections)])
    order = np.lexsort((-scores, found.images))
    rank = _rank(found.images[order] * num_classes + found.labels[order])
    order, rank = order[rank < MOST], rank[rank < MOST]
    found = Boxes(found.boxes[order], found.labels[order], found.images[order])
    det, obj, iou = _pairs(found, objects, ignore, len(records))
    same = (found.labels[det] == objects.labels[obj]) & (iou >= IOU)
    match = _greedy(det[same], obj[same], iou[same], rank, ignore)
    real = ~ignore[obj]
    near = (det[real], obj[real], iou[real])
    return Matching(
        len(records),
        num_classes,
        found,
        scores[order].astype(np.float64),
        objects,
        ignore,
        areas,
        match,
        near,
    )


def rows_by_class(labels: np.ndarray, rows: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The indices of ``rows`` (N,), bool, of each class, in their order; one pass for any number of classes."""
    chosen = np.flatnonzero(rows)
    chosen = chosen[np.argsort(labels[chosen], kind="stable")]
    return np.split(chosen, np.searchsorted(labels[chosen], np.arange(1, num_classes)))


def pairwise_iou(boxes: np.ndarray, others: np.ndarray, over_first: ArrayLike = False) -> np.ndarray:
    """IoU of boxes (N, 4) with others (M, 4), (N, M).

    Args:
        boxes: xyxy.
        others: xyxy.
        over_first: (M,) bool, for which of ``others`` the intersection is divided by the area of ``boxes`` instead of
            the union, as COCO does for crowds.
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    own = _areas(boxes)[:, None]
    whole = np.where(over_first, own, own + _areas(others) - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _pairs(
    found: Boxes, objects: Boxes, ignore: np.ndarray, num_images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detection, object and IoU of the pairs of one image whose IoU is at least 0.1."""
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    spans = zip(pairwise(found.starts(num_images)), pairwise(objects.starts(num_images)), strict=True)
    for (d, d_end), (g, g_end) in spans:
        if d < d_end and g < g_end:
            iou = pairwise_iou(found.boxes[d:d_end], objects.boxes[g:g_end], ignore[g:g_end])
            rows, columns = np.nonzero(iou >= NEAR)
            parts.append((rows + d, columns + g, iou[rows, columns]))
    det, obj, iou = (np.concatenate(part) for part in zip(*parts, strict=True))
    return det, obj, iou


def _greedy(
    det: np.ndarray, obj: np.ndarray, iou: np.ndarray, rank: np.ndarray, ignore: np.ndarray
) -> np.ndarray:
    """Match of each detection, from the pairs that are allowed; ``rank`` (D,) is its place in its image and class.

    Detections of one rank compete for no object, so each round handles one rank in all images and classes.
    """
    # of a detection's objects COCO prefers those not ignored, then the highest IoU, then the last
    order = np.lexsort((-obj, -iou, ignore[obj], det, rank[det]))
    det, obj = det[order], obj[order]
    bounds = np.searchsorted(rank[det], np.arange(rank.max(initial=-1) + 2))
    match, taken = np.full(len(rank), -1), np.zeros(len(ignore), bool)
    for start, end in pairwise(bounds):
        free = ~taken[obj[start:end]]
        d, g = det[start:end][free], obj[start:end][free]
        best = np.flatnonzero(np.diff(d, prepend=-1))
        match[d[best]] = g[best]
        taken[g[best]] = ~ignore[g[best]]
    return match


def _pack(images: Sequence[tuple[ArrayLike, ArrayLike]]) -> Boxes:
    boxes = [np.asarray(boxes, np.float64).reshape(-1, 4) for boxes, _ in images]
    labels = [np.asarray(labels, np.int64) for _, labels in images]
    counts = np.array([len(part) for part in labels], np.int64)
    return Boxes(
        np.concatenate([np.zeros((0, 4)), *boxes]),
        np.concatenate([np.zeros(0, np.int64), *labels]),
        np.repeat(np.arange(len(images)), counts),
    )


def _rank(groups: np.ndarray) -> np.ndarray:
    """Number of earlier elements of the same group."""
    order = np.argsort(groups, kind="stable")
    is_first = np.diff(groups[order], prepend=-1) != 0
    positions = np.arange(len(groups))
    rank = np.empty_like(positions)
    rank[order] = positions - np.maximum.accumulate(np.where(is_first, positions, 0))
    return rank


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
