"""A sheet of labeled images, as they are or as training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fcos_fast.data import AugmentConfig, DetectionDataset, train_loader
from fcos_fast.text import printable
from fcos_fast.visualize import draw_boxes, font_for

COLUMNS = 4
"""Images in a row of the sheet."""

WIDTH = 320
"""Width of an image on the sheet in pixels; a taller one is scaled down to this height."""

_GAP, _CAPTION = 8, 20


def choose_images(
    dataset: DetectionDataset, count: int, classes: Sequence[str] | None = None, seed: int = 0
) -> list[int]:
    """Indices of at most ``count`` random images; with ``classes``, only of images with a box of one of them.

    Raises:
        ValueError: an unknown class, or no image has one of them.
    """
    labels = [dataset.categories.label_of(name) for name in classes or ()]
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    chosen = [i for i in order if not labels or np.isin(dataset.records[i].labels, labels).any()]
    if not chosen:
        raise ValueError(f"no image has a box of {', '.join(classes or ())}; choose other classes")
    return chosen[:count]


def labeled_sheet(dataset: DetectionDataset, images: Sequence[int]) -> Image.Image:
    """The images of these indices with their boxes; ignored boxes say so."""
    cells, captions = [], []
    for i in images:
        image, target = dataset[i]
        cells.append(_draw(image, target, dataset.categories.names))
        captions.append(_caption(dataset, i, len(target["boxes"])))
    return _grid(cells, captions)


def augmented_sheet(
    dataset: DetectionDataset, images: Sequence[int], augment: AugmentConfig, seed: int = 0
) -> Image.Image:
    """A row for each image: as it is, and as training sees it in the first epochs. Ignored boxes are not trained."""
    augment = replace(augment, multi_scale=(1.0, 1.0))  # the sheet shows all sizes in one
    loader = train_loader(dataset, 1, augment, seed, workers=0)
    cells, captions = [], []
    for i in images:
        versions = [dataset[i], *(loader.dataset[epoch, i] for epoch in range(COLUMNS - 1))]
        for epoch, (image, target) in enumerate(versions):
            kept = ~target["ignore"] if epoch else slice(None)
            target = {name: target[name][kept] for name in ("boxes", "labels", "ignore")}
            cells.append(_draw(image, target, dataset.categories.names))
            text = f"epoch {epoch}, {len(target['boxes'])} boxes"
            captions.append(text if epoch else _caption(dataset, i, len(target["boxes"])))
    return _grid(cells, captions)


def _caption(dataset: DetectionDataset, image: int, boxes: int) -> str:
    return f"{printable(dataset.records[image].name)}, {boxes} boxes"


def _draw(image: Tensor, target: dict[str, Any], names: Sequence[str]) -> Image.Image:
    scale = WIDTH / max(image.shape[-2:])
    shown = [f"{printable(name)} ignored" for name in names]
    labels = target["labels"] + len(names) * target["ignore"].long()
    return draw_boxes(image, target["boxes"], labels, [*map(printable, names), *shown], scale=scale)


def _grid(cells: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Images in rows of :data:`COLUMNS`, each above its caption."""
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    heights = [max(cell.height for cell in row) + _CAPTION + _GAP for row in rows]
    columns = min(COLUMNS, len(cells))
    sheet = Image.new("RGB", (columns * (WIDTH + _GAP) + _GAP, sum(heights) + _GAP), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), font_for("".join(captions), 13)
    y = _GAP
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, cell in enumerate(row):
            x = _GAP + column * (WIDTH + _GAP)
            sheet.paste(cell, (x, y))
            text = captions[number * COLUMNS + column]
            while draw.textlength(text, font=font) > WIDTH:  # keep the end, where names differ
                text = "…" + text.lstrip("…")[1:]
            draw.text((x, y + cell.height + 2), text, fill=(0, 0, 0), font=font)
        y += height
    return sheet
