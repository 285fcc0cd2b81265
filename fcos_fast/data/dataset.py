"""Images with their boxes, however they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .categories import Categories
from .checks import MAX_PIXELS, DataError, Report
from .images import read_image


@dataclass(frozen=True)
class Record:
    """One image and its ground truth.

    Arrays are numpy's because a data set travels to worker processes, where every tensor would take a file
    handle.

    Attributes:
        name: file name of the image.
        size: (width, height) in pixels, upright.
        boxes: (N, 4) float32, xyxy in pixels, inside the image, each with an area.
        labels: (N,) int64, 0..C-1.
        ignore: (N,) bool; boxes that are not trained on, and that evaluation neither asks for nor counts as wrong
            (VOC's ``difficult``, COCO's crowds).
        image: the file, or the image itself, uint8 (3, H, W) RGB.
        areas: (N,) float32, of the objects in pixels, by which evaluation tells small from large; None: of the boxes.
        image_id: COCO's, with which results are written; None: the image's position in the data set.
    """

    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    image: Path | np.ndarray
    areas: np.ndarray | None = None
    image_id: int | str | None = None


class DetectionDataset(Dataset):
    """Images, targets and categories: what every reader of a dataset format returns.

    ``dataset[i]`` is ``(image, target)``: a uint8 (3, H, W) RGB tensor, upright by its EXIF orientation, and
    a dictionary of ``boxes`` (N, 4) float32 xyxy in pixels, ``labels`` (N,) int64 in 0..C-1, ``ignore`` (N,)
    bool, all as in :class:`Record`, and ``image_id``, the position i.

    A file is decoded each time it is asked for; holding images in memory would save no more than decoding
    costs, one or two milliseconds for a 640x480 JPEG.

    Attributes:
        records: one per image.
        categories: the classes.
        report: what loading found wrong; None for generated images.
        max_pixels: a larger image is not decoded.
    """

    def __init__(
        self,
        records: Sequence[Record],
        categories: Categories,
        report: Report | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self.records = list(records)
        self.categories = categories
        self.report = report
        self.max_pixels = max_pixels
        if report is not None:
            report.count(self.records)

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
                f"{record.image}: decodes to {width}x{height} pixels, but when the data set was loaded it had "
                f"{record.size[0]}x{record.size[1]}, by its header or the annotations; correct these, or load it again"
            )
        return image, target

    def coco_ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The ground truth as COCO has it, with the data set's own category ids; no image is read.

        Boxes are xywh. A box to be ignored has ``iscrowd`` 1 beside ``ignore`` 1, because the COCO evaluation
        looks at ``iscrowd`` alone.
        """
        images, annotations = [], []
        for image_id, record in enumerate(self.records):
            width, height = record.size
            images.append({"id": image_id, "file_name": record.name, "width": width, "height": height})
            sides = record.boxes[:, 2:] - record.boxes[:, :2]
            areas = sides.prod(axis=1) if record.areas is None else record.areas
            columns = (record.boxes, record.labels, record.ignore, areas)
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
