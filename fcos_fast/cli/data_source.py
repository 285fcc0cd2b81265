"""The dataset that ``fcos-fast data split`` and ``fcos-fast data convert`` read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fcos_fast.data.checks import MAX_PIXELS
from fcos_fast.fields import check_fields, positive
from fcos_fast.text import printable

if TYPE_CHECKING:
    import fcos_fast.data


@dataclass(frozen=True)
class SourceConfig:
    """The dataset to read.

    Attributes:
        root: folder of the dataset (VOC, COCO or YOLO; detected), ``data.yaml`` or COCO JSON file.
        split: split to read; by default all.
        strict: make invalid boxes (zero area, outside the image, NaN) errors instead of skipping them.
        allow_outside: accept paths in COCO and YOLO files that lead outside ``root``. An untrusted dataset could name
            any image on this machine.
        max_pixels: images with more pixels are rejected: a small file can decode to more than fits in memory.
    """

    root: str = ""
    split: str = ""
    strict: bool = False
    allow_outside: bool = False
    max_pixels: int = positive(MAX_PIXELS)

    def __post_init__(self) -> None:
        check_fields(self, "data.")

    def load(self, split: str) -> fcos_fast.data.DetectionDataset:
        """Load a split (empty: all images) and print what was found; errors as :func:`fcos_fast.data.load_dataset`."""
        from fcos_fast.data import load_dataset  # needs torch

        if not self.root:
            raise ValueError("no dataset; give its folder with --data.root")
        dataset = load_dataset(
            self.root,
            split or None,
            strict=self.strict,
            allow_outside=self.allow_outside,
            max_pixels=self.max_pixels,
        )
        print(printable(str(dataset.report)))
        return dataset
