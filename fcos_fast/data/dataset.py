"""Images with their boxes, however they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transform

from .categories import Categories
from .checks import DataError, Report


@dataclass(frozen=True)
class Record:
    """One image and its ground truth.

    Attributes:
        image: the file, or the picture itself as a uint8 (3, H, W) RGB tensor.
        name: what people call the image: its file name.
        size: (width, height) in pixels, upright.
        boxes: (N, 4) float32, xyxy in pixels, inside the image, with an area.
        labels: (N,) int64, 0..C-1.
        ignore: (N,) bool; boxes that evaluation neither asks for nor counts as wrong (VOC's ``difficult``).
    """

    image: Path | Tensor
    name: str
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    ignore: Tensor


class DetectionDataset(Dataset):
    """Images, targets and categories: what every reader of a layout returns.

    ``dataset[i]`` is ``(image, target)``: a uint8 (3, H, W) RGB tensor, upright by its EXIF orientation, and
    ``{"boxes": (N, 4) float32 xyxy pixels, "labels": (N,) int64 in 0..C-1, "ignore": (N,) bool, "image_id": int}``.
    The image id is the position i.

    Files are decoded when they are asked for and not kept: decoding a 640x480 JPEG takes about a millisecond, less
    than a hundredth of a training step.

    Attributes:
        records: one per image.
        categories: the classes.
        report: what loading found wrong, None for generated pictures.
    """

    def __init__(self, records: Sequence[Record], categories: Categories, report: Report | None = None):
        self.records = list(records)
        self.categories = categories
        self.report = report

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        record = self.records[index]
        image = record.image if isinstance(record.image, Tensor) else read_image(record.image)
        width, height = record.size
        if image.shape != (3, height, width):
            raise DataError(
                f"{record.image}: decodes to {image.shape[2]}x{image.shape[1]} pixels but was {width}x{height} when "
                f"the data set was loaded; load it again"
            )
        target = {
            "boxes": record.boxes,
            "labels": record.labels,
            "ignore": record.ignore,
            "image_id": range(len(self))[index],
        }
        return image, target

    def coco_ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The ground truth as COCO has it, with the data set's own category ids, without reading an image.

        Boxes are xywh. A box to be ignored carries ``iscrowd`` 1 beside ``ignore`` 1, because the COCO evaluation
        looks at ``iscrowd`` alone.
        """
        images, annotations = [], []
        for image_id, record in enumerate(self.records):
            width, height = record.size
            images.append({"id": image_id, "file_name": record.name, "width": width, "height": height})
            rows = zip(record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True)
            for (x1, y1, x2, y2), label, ignore in rows:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.categories.ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": int(ignore),
                        "ignore": int(ignore),
                    }
                )
        names = zip(self.categories.ids, self.categories.names, strict=True)
        categories = [{"id": i, "name": name} for i, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to a uint8 (3, H, W) RGB tensor, upright by its EXIF orientation.

    Raises:
        DataError: the file is missing, empty, cut short or no image.
    """
    try:
        image = decode_image(str(path), mode=ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        cause = str(error).splitlines()[0].rsplit(", ", 1)[-1]
        raise DataError(
            f"{path}: cannot be decoded ({cause}); replace it or take it out of the data set"
        ) from None
    return image if image.dtype == torch.uint8 else transform.to_dtype(image, torch.uint8, scale=True)
