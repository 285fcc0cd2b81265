"""Writes datasets as COCO json files, for trainers that read nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fcos_fast.data import DetectionDataset


def write_coco(root: Path, splits: Mapping[str, DetectionDataset]) -> None:
    """Write ``SPLIT.json`` for each split of a VOC folder, and ``classes.json`` with the names of the classes."""
    for split, dataset in splits.items():
        images, annotations = [], []
        for index, record in enumerate(dataset.records):
            width, height = record.size
            name = str(Path(record.image).relative_to(root))
            images.append({"id": index, "file_name": name, "width": int(width), "height": int(height)})
            for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
                x1, y1, x2, y2 = box
                size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": index, "category_id": label, **size}
                )
        categories = [{"id": i, "name": name} for i, name in enumerate(dataset.categories.names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
        (root / "classes.json").write_text(json.dumps(dataset.categories.names))
