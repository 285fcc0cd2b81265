"""Small datasets in YOLO and COCO format, for tests."""

from __future__ import annotations

import json

import yaml
from PIL import Image

CAT = ("cat", (1, 2, 30, 20))
ROW = "0 0.5 0.5 0.5 0.5\n"


def save(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def write_yolo(root, images=("images/train/a.jpg",), **content):
    """A YOLO dataset of one class with a box per image."""
    root.mkdir(parents=True, exist_ok=True)
    for image in images:
        save(root / image)
        label = (root / image.replace("images/", "labels/")).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(ROW)
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["cat"], "train": "images/train", **content}))
    return root


def write_coco(root, names=("a.jpg",), file="annotations/train.json", **changes):
    """A COCO file of one class with a box per image. The images are not written."""
    content = {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 9]} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
        **changes,
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root
