"""Boxes drawn on images. Needs no torch; tensors are accepted."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from fcos_fast.inference.images import ImageLike, as_array

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image, ImageDraw, ImageFont

LineStyle: TypeAlias = Literal["solid", "dashed", "dotted"]


FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf"),  # Latin, Greek, Cyrillic
    *("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "Arial Unicode.ttf", "msyh.ttc", "malgun.ttf"),
)
"""Fonts, if they are installed, for what Pillow's own lacks: most characters beyond ASCII."""


def class_color(label: int) -> tuple[int, int, int]:
    """The color of a class. Hues are a golden angle apart, so neighboring classes differ for any number of classes."""
    red, green, blue = colorsys.hsv_to_rgb((0.6 + label * 0.381966) % 1.0, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def to_pil(image: ImageLike) -> Image.Image:
    """Any image as an RGB Pillow image; see :data:`~fcos_fast.inference.images.ImageLike`."""
    from PIL import Image

    pixels = as_array(image)
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


FOUND = (86, 180, 233)
"""Color of what is right in the drawing of an evaluation."""


class Mark(NamedTuple):
    """A box to draw.

    Attributes:
        box: x1, y1, x2, y2 in the image's pixels.
        text: its label; empty for none.
        color: RGB, 0 to 255.
        style: line style.
        edge: draw a black edge around the line, so that it stands out on any background.
    """

    box: Sequence[float]
    text: str
    color: tuple[int, int, int]
    style: LineStyle = "solid"
    edge: bool = False


def true_positive(box: Sequence[float], text: str) -> Mark:
    """The mark of a correct detection, or of an object that is found: blue, solid."""
    return Mark(box, text, FOUND, "solid", edge=True)


def missed(box: Sequence[float], text: str) -> Mark:
    """The mark of an object that is not found: yellow, dashed."""
    return Mark(box, text, (240, 228, 66), "dashed", edge=True)


def false_positive(box: Sequence[float], text: str) -> Mark:
    """The mark of a wrong detection: red, dotted."""
    return Mark(box, text, (255, 90, 54), "dotted", edge=True)


def labeled(box: Sequence[float], text: str) -> Mark:
    """The mark of an object beside a detection that misplaces it: white, solid."""
    return Mark(box, text, (255, 255, 255), "solid", edge=True)


def draw_boxes(
    image: ImageLike,
    boxes: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    scores: ArrayLike | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Draw boxes with their class names, and scores in percent, on a copy of an image.

    Args:
        image: any image; an array (H, W, 3) or a tensor (3, H, W), for example.
        boxes: (N, 4) xyxy in the image's pixels. The box with the highest score is drawn last, on top.
        labels: (N,) in 0..len(names)-1.
        names: the class names.
        scores: (N,) in 0..1, or None for ground truth.
        scale: factor by which the image is resized first; the size of lines and text depends on the result.
    """
    rows = _rows(boxes, labels, names, scores)
    return draw_marks(image, [Mark(box, text, class_color(label)) for box, text, label in rows], scale)


def draw_marks(image: ImageLike, marks: Sequence[Mark], scale: float = 1.0) -> Image.Image:
    """Draw marks on a copy of an image, the last on top; labels do not overlap if there is space at the boxes.

    Args:
        image: any image; an array (H, W, 3) or a tensor (3, H, W), for example.
        marks: the boxes.
        scale: factor by which the image is resized first; the size of lines and text depends on the result.
    """
    from PIL import ImageDraw

    canvas = to_pil(image)
    canvas = canvas.resize([max(1, round(side * scale)) for side in canvas.size])
    draw = ImageDraw.Draw(canvas)
    font = font_for("".join(mark.text for mark in marks), max(11, min(canvas.size) // 28))
    thickness = max(2, min(canvas.size) // 160)
    boxes = np.array([mark.box for mark in marks], np.float64).reshape(-1, 4) * scale
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    for mark, box in zip(marks, boxes.tolist(), strict=True):
        _outline(draw, box, mark, thickness + mark.edge)
    extents = np.array([draw.textbbox((0, 0), mark.text, font=font) for mark in marks]).reshape(-1, 4)
    sizes = extents[:, 2:] - extents[:, :2] + 2
    places = place_labels(boxes[::-1], sizes[::-1], canvas.size)[::-1]  # the mark on top chooses first
    for mark, (x, y), (width, height), extent in zip(marks, places, sizes, extents, strict=True):
        if mark.text:
            draw.rectangle((x, y, x + width, y + height), fill=mark.color)
            draw.text((x + 1 - extent[0], y + 1 - extent[1]), mark.text, fill=(0, 0, 0), font=font)
    return canvas


def place_labels(boxes: np.ndarray, sizes: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Choose where to write the label of each box: at its edges, inside the canvas, off the labels placed before.

    Args:
        boxes: (N, 4) xyxy in pixels; the first choose first.
        sizes: (N, 2) width and height of the labels in pixels.
        canvas: width and height in pixels.

    Returns:
        (N, 2) left upper corners. A label overlaps others if every place at its box does; then as little as possible.
    """
    placed = np.zeros((len(boxes), 4))
    for i, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        corners = _places(box, size).clip(0, np.maximum(0, canvas - size - 1))
        low = np.maximum(corners[:, None], placed[:i, :2])
        high = np.minimum(corners[:, None] + size + 1, placed[:i, 2:])
        overlap = (high - low).clip(0).prod(axis=2).sum(axis=1)
        best = corners[overlap.argmin()]  # the first of the best
        placed[i] = (*best, *(best + size + 1))
    return placed[:, :2]


def _places(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Left upper corners of a label at a box, the usual ones first; (K, 2)."""
    x1, y1, x2, y2 = box
    width, height = size + 1
    columns = (x1, x2 - width, (x1 + x2 - width) / 2)
    rows = (y1 - height, y1, y2, y2 - height)  # above, inside, below, inside
    steps = np.arange(y1 + height, y2 - 2 * height, height)[:20]  # along the left and right side
    along = [(x, y) for y in steps.tolist() for x in columns[:2]]
    return np.array([*((x, y) for y in rows for x in columns), *along])


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font that can draw ``text``, or most of it: Pillow's own for ASCII, otherwise one of :data:`FONTS`."""
    from PIL import ImageFont

    file = None if text.isascii() else _font_file("".join(sorted({c for c in text if not c.isascii()})))
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)


@lru_cache
def _font_file(characters: str) -> str | None:
    """The font that has the most of some characters, the first of several; None if no font has any."""
    counts = [sum(bytes(font.getmask(c)) != missing for c in characters) for font, missing in _fonts()]
    best = max(counts, default=0)
    return str(_fonts()[counts.index(best)][0].path) if best else None


@lru_cache
def _fonts() -> list[tuple[ImageFont.FreeTypeFont, bytes]]:
    """Those of :data:`FONTS` that are installed, and what each draws for a character that it lacks."""
    from PIL import ImageFont

    matplotlib = find_spec("matplotlib")  # it contains the first one; it is not imported
    folders = matplotlib.submodule_search_locations or [] if matplotlib else []
    fonts = []
    for name in [*(str(Path(folder, "mpl-data/fonts/ttf", FONTS[0])) for folder in folders), *FONTS]:
        with suppress(OSError):
            font = ImageFont.truetype(name, 16)
            fonts.append((font, bytes(font.getmask("\U0010ffff"))))
    return fonts


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[float], mark: Mark, thickness: int) -> None:
    """Draw the four sides inside the box, as a rectangle or as dashes."""
    x1, y1, x2, y2 = box
    if mark.edge:
        width = 1 if mark.style == "solid" else thickness + 1  # black between the dashes, too
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=width)
    if mark.style == "solid":
        draw.rectangle((x1, y1, x2, y2), outline=mark.color, width=thickness)
        return
    dash, gap = (5 * thickness, 3 * thickness) if mark.style == "dashed" else (2 * thickness, thickness)
    inner = thickness - 1
    for x in np.arange(x1, x2, dash + gap).tolist():
        end = min(x + dash - 1, x2)
        draw.rectangle((x, y1, end, y1 + inner), fill=mark.color)
        draw.rectangle((x, max(y1, y2 - inner), end, y2), fill=mark.color)
    for y in np.arange(y1, y2, dash + gap).tolist():
        end = min(y + dash - 1, y2)
        draw.rectangle((x1, y, x1 + inner, end), fill=mark.color)
        draw.rectangle((max(x1, x2 - inner), y, x2, end), fill=mark.color)


def _rows(
    boxes: ArrayLike, labels: ArrayLike, names: Sequence[str], scores: ArrayLike | None
) -> list[tuple[list[float], str, int]]:
    """Box, text and label of each box, in ascending order of scores."""
    rows = list(zip(np.asarray(boxes).tolist(), np.asarray(labels).tolist(), strict=True))
    if scores is None:
        return [(box, names[label], label) for box, label in rows]
    values = np.asarray(scores)
    return [
        (*rows[i][:1], f"{names[rows[i][1]]} {100 * values[i]:.0f}", rows[i][1])
        for i in np.argsort(values).tolist()
    ]


def sheet(
    images: Sequence[ImageLike],
    targets: Sequence[Mapping[str, ArrayLike]],
    detections: Sequence[Mapping[str, ArrayLike]],
    names: Sequence[str],
    columns: int = 2,
    width: int = 400,
    score_threshold: float = 0.3,
) -> Image.Image:
    """Pairs of images, with ground truth on the left and detections on the right.

    Args:
        images: any images.
        targets: ``boxes`` and ``labels`` of each image. With ``found``, (N,) bool, found and missed objects differ in
            color and line style; otherwise colors are those of the classes.
        detections: ``boxes``, ``labels`` and ``scores`` of each image; with ``correct``, (N,) bool, the same.
        names: the class names.
        columns: pairs per row.
        width: width of each image in pixels. Images taller than twice the width are scaled down to that height.
        score_threshold: detections with a lower score are not drawn.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not images:
        raise ValueError("sheet: got no images")
    pairs = [
        _pair(image, target, detection, names, width, score_threshold)
        for image, target, detection in zip(images, targets, detections, strict=True)
    ]
    gap, header = 8, 28
    columns = min(columns, len(pairs))
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    heights = [max(left.height for left, _ in row) for row in rows]
    stride = 2 * width + 3 * gap  # from one pair to the next
    page = Image.new("RGB", (columns * stride, header + sum(h + gap for h in heights)), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=16)
    titles = [
        "ground truth" + (": found solid, missed dashed" if "found" in targets[0] else ""),
        "detections: correct solid, false positives dotted"
        if "correct" in detections[0]
        else f"detections (score from {score_threshold:g})",
    ]
    for x in range(gap, page.width, stride):
        for place, title in zip((x, x + width + gap), titles, strict=True):
            draw.text((place, 4), title, fill=(0, 0, 0), font=font)
    y = header
    for row, height in zip(rows, heights, strict=True):
        for x, (left, right) in zip(range(gap, page.width, stride), row, strict=False):
            page.paste(left, (x, y))
            page.paste(right, (x + width + gap, y))
        y += height + gap
    return page


def _pair(
    image: ImageLike,
    target: Mapping[str, ArrayLike],
    detection: Mapping[str, ArrayLike],
    names: Sequence[str],
    width: int,
    score_threshold: float,
) -> tuple[Image.Image, Image.Image]:
    """An image with its ground truth and with its detections, scaled to ``width`` or twice that height."""
    canvas = to_pil(image)
    scale = min(width / canvas.width, 2 * width / canvas.height)
    keep = np.asarray(detection["scores"]) >= score_threshold
    kept = {name: np.asarray(values)[keep] for name, values in detection.items()}
    if "found" in target:
        left = draw_marks(canvas, target_marks(target, names), scale)
    else:
        left = draw_boxes(canvas, target["boxes"], target["labels"], names, scale=scale)
    if "correct" in kept:
        right = draw_marks(canvas, detection_marks(kept, names), scale)
    else:
        right = draw_boxes(canvas, kept["boxes"], kept["labels"], names, kept["scores"], scale)
    return left, right


def target_marks(target: Mapping[str, ArrayLike], names: Sequence[str]) -> list[Mark]:
    """The marks of ``boxes`` (N, 4) and ``labels`` (N,), as ``found`` (N,) says."""
    rows = zip(*(np.asarray(target[name]).tolist() for name in ("boxes", "labels", "found")), strict=True)
    return [(true_positive if found else missed)(box, names[label]) for box, label, found in rows]


def detection_marks(detection: Mapping[str, ArrayLike], names: Sequence[str]) -> list[Mark]:
    """The marks of ``boxes`` (N, 4), ``labels`` (N,) and ``scores`` (N,), as ``correct`` (N,) says."""
    scores = np.asarray(detection["scores"])
    rows = _rows(detection["boxes"], detection["labels"], names, scores)
    correct = np.asarray(detection["correct"])[np.argsort(scores)].tolist()
    return [
        (true_positive if is_true else false_positive)(box, text)
        for (box, text, _), is_true in zip(rows, correct, strict=True)
    ]
