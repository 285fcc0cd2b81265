from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Objects = Sequence[tuple[str, Sequence[object]]]


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """Write a VOC folder of 40x30 images: ``make_voc({"a": [("cat", (1, 2, 30, 20))]}, train=["a"])``."""

    def make(images: Mapping[str, Objects], **splits: Sequence[str]) -> Path:
        root = tmp_path / "pets"
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        for stem, objects in images.items():
            Image.fromarray(np.full((30, 40, 3), 128, np.uint8)).save(root / "JPEGImages" / f"{stem}.jpg")
            (root / "Annotations" / f"{stem}.xml").write_text(to_xml(objects))
        for split, stems in splits.items():
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
        return root

    return make


def to_xml(objects: Objects) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    text = ""
    for name, box in objects:
        corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, box, strict=True))
        text += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
    head = "<path>C:\\elsewhere\\x.jpg</path><size><width>40</width><height>30</height></size>"
    return f"<annotation>{head}{text}</annotation>"
