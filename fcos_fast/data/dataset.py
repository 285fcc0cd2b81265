"""The dataset that every reader returns: images, targets and categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .categories import Categories
from .checks import MAX_PIXELS, DataError, Report
from .records import Record, Records
from .tensors import read_image


class DetectionDataset(Dataset[tuple[Tensor, dict[str, Any]]]):
    """A detection dataset.

    ``dataset[i]`` is ``(image, target)``: a uint8 (3, H, W) RGB tensor, upright by its EXIF orientation, and a
    dictionary of ``boxes`` (N, 4) float32 xyxy in pixels, ``labels`` (N,) int64 in 0..C-1, ``ignore`` (N,) bool, all as
    in :class:`Record`, and ``image_id``, the index i.

    An image is decoded at each access. A cache would save only the decoding, 1 or 2 ms for a 640x480 JPEG.

    Attributes:
        records: one per image, in packed arrays; a list of :class:`Record` is packed when it is assigned.
        categories: the classes.
        report: what loading found; None for generated images.
        max_pixels: images with more pixels are not decoded.
    """

    def __init__(
        self,
        records: Sequence[Record],
        categories: Categories,
        report: Report | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self.records = records
        self.categories = categories
        self.report = report
        self.max_pixels = max_pixels
        if report is not None:
            report.count(self.records)

    @property
    def records(self) -> Records:
        """One record per image."""
        return self._records

    @records.setter
    def records(self, records: Sequence[Record]) -> None:
        self._records = records if isinstance(records, Records) else Records.of(records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        record = self.records[index]
        target = {
            "boxes": torch.tensor(record.boxes),
            "labels": torch.tensor(record.labels),
            "ignore": torch.tensor(record.ignore),
            "image_id": range(len(self))[index],
        }
        if isinstance(record.image, np.ndarray):
            return torch.tensor(record.image), target
        image = read_image(record.image, self.max_pixels)
        height, width = image.shape[1:]
        if (width, height) != record.size:
            raise DataError(
                f"{record.image}: decodes to {width}x{height} pixels, but when the dataset was loaded it had "
                f"{record.size[0]}x{record.size[1]} by its header or the annotations; correct these, or load it again"
            )
        return image, target

    def coco_ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The ground truth in COCO format, with the dataset's own category ids. No image is read.

        Boxes are xywh. An ignored box has ``iscrowd`` 1 besides ``ignore`` 1, because COCO's evaluation reads only
        ``iscrowd``.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, record in enumerate(self.records):
            width, height = record.size
            images.append({"id": image_id, "file_name": record.name, "width": width, "height": height})
            assert record.areas is not None  # packing has filled them in
            columns = (record.boxes, record.labels, record.ignore, record.areas)
            for (x1, y1, x2, y2), label, ignore, area in zip(*(c.tolist() for c in columns), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.categories.ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": area,
                        "iscrowd": int(ignore),
                        "ignore": int(ignore),
                    }
                )
        numbered = zip(self.categories.ids, self.categories.names, strict=True)
        categories = [{"id": category_id, "name": name} for category_id, name in numbered]
        return {"images": images, "annotations": annotations, "categories": categories}
