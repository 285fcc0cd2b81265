"""COCO average precision, computed by faster-coco-eval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fcos_fast.data import Categories, DetectionDataset
from fcos_fast.data.coco_results import coco_detections
from fcos_fast.text import printable


@dataclass(frozen=True)
class AveragePrecision:
    """The COCO detection metrics, in 0..1; NaN without ground truth.

    Attributes:
        ap: mean over IoU thresholds 0.50:0.05:0.95 and classes, at most 100 detections per image.
        ap50, ap75: at one IoU threshold.
        ap_small, ap_medium, ap_large: for ground truth of area below 32², between, and above 96² pixels.
        ar1, ar10, ar100: average recall with at most 1, 10, 100 detections per image.
        ar_small, ar_medium, ar_large: average recall by area, at most 100 detections per image.
        per_class: class name to ``ap``, in the order of the categories.
        per_class50: class name to ``ap50``.
        images_per_second: speed of the evaluation, from the image files to the detections; NaN if it was not measured.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: dict[str, float] = field(default_factory=dict)
    per_class50: dict[str, float] = field(default_factory=dict)
    images_per_second: float = math.nan

    def summary(self) -> dict[str, float]:
        """Name to value of the metrics over all classes."""
        return {k: v for k, v in vars(self).items() if isinstance(v, float) and k != "images_per_second"}

    def table(self) -> str:
        """The metrics as text: one line for all classes, then one per class."""
        names = {name: printable(name) for name in self.per_class}
        width = max(map(len, ["all classes", *names.values()]))
        lines = [
            f"{'':{width}}      AP    AP50",
            f"{'all classes':{width}}  {self.ap:6.3f}  {self.ap50:6.3f}",
        ]
        for name, ap in self.per_class.items():
            lines.append(f"{names[name]:{width}}  {ap:6.3f}  {self.per_class50[name]:6.3f}")
        lines.append(
            f"AP75 {self.ap75:.3f}   AP small {self.ap_small:.3f}, medium {self.ap_medium:.3f}, "
            f"large {self.ap_large:.3f}   AR {self.ar100:.3f}"
        )
        return "\n".join(lines)


def average_precision(
    ground_truth: dict[str, list[dict[str, Any]]],
    detections: Sequence[dict[str, Tensor]],
    categories: Categories,
) -> AveragePrecision:
    """COCO average precision.

    Args:
        ground_truth: content of a COCO file, from ``DetectionDataset.coco_ground_truth()``. Annotations with
            ``iscrowd`` count neither as found nor as missed.
        detections: for each of its images, in the same order, ``boxes`` (N, 4) xyxy pixels, ``scores`` (N,) and
            ``labels`` (N,) in 0..C-1.
        categories: the C classes.

    Raises:
        ValueError: the number of images differs.
    """
    images = ground_truth["images"]
    if len(detections) != len(images):
        raise ValueError(
            f"average_precision: got detections of {len(detections)} images; expected {len(images)}"
        )
    annotations = [
        annotation
        for image, detection in zip(images, detections, strict=True)
        for annotation in coco_detections(image["id"], detection, categories)
    ]
    precision, recall = _precision_and_recall(ground_truth, annotations)
    index = np.argsort(np.argsort(categories.ids))  # of each class in the curves
    all_sizes, small, medium, large = range(4)
    return AveragePrecision(
        ap=_mean(precision[:, :, :, all_sizes, 2]),
        ap50=_mean(precision[0, :, :, all_sizes, 2]),
        ap75=_mean(precision[5, :, :, all_sizes, 2]),
        ap_small=_mean(precision[:, :, :, small, 2]),
        ap_medium=_mean(precision[:, :, :, medium, 2]),
        ap_large=_mean(precision[:, :, :, large, 2]),
        ar1=_mean(recall[:, :, all_sizes, 0]),
        ar10=_mean(recall[:, :, all_sizes, 1]),
        ar100=_mean(recall[:, :, all_sizes, 2]),
        ar_small=_mean(recall[:, :, small, 2]),
        ar_medium=_mean(recall[:, :, medium, 2]),
        ar_large=_mean(recall[:, :, large, 2]),
        per_class={
            n: _mean(precision[:, :, k, all_sizes, 2]) for n, k in zip(categories.names, index, strict=True)
        },
        per_class50={
            n: _mean(precision[0, :, k, all_sizes, 2]) for n, k in zip(categories.names, index, strict=True)
        },
    )


def _precision_and_recall(
    ground_truth: dict[str, list[dict[str, Any]]], annotations: list[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M) of detections; -1 without ground truth.

    The axes are IoU thresholds, recall thresholds, classes ordered by id, area ranges, and detection limits.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # faster-coco-eval needs these fields, which a COCO results file does not have; there can be millions: no copies
    for i, annotation in enumerate(annotations, start=1):
        annotation.update(id=i, iscrowd=0, area=annotation["bbox"][2] * annotation["bbox"][3])
    evaluation = COCOeval_faster(
        COCO(ground_truth),
        COCO({**ground_truth, "annotations": annotations}),
        iouType="bbox",
        print_function=lambda *_: None,
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def coco_results(
    dataset: DetectionDataset, detections: Sequence[dict[str, Tensor]]
) -> Iterator[dict[str, Any]]:
    """Yield the content of a COCO results file, with the image and category ids of the dataset."""
    ids = [i if record.image_id is None else record.image_id for i, record in enumerate(dataset.records)]
    for image_id, detection in zip(ids, detections, strict=True):
        yield from coco_detections(image_id, detection, dataset.categories)


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else math.nan
